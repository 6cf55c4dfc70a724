/* A convolution request as a cuDNN graph of operations: one convolution, and for a fused forward pass bias, residual
 * and activation after it. */
#include "kernels/cuda/conv/cudnn_internal.h"
#ifdef CONV_CUDNN
#include <stdlib.h>

static cudnnDataType_t data_type(cmkd_dtype dtype) {
  if (dtype == CMKD_F16) return CUDNN_DATA_HALF;
  return dtype == CMKD_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* (n, c, h, w) in NHWC with `stride` channels from pixel to pixel. */
static descriptor tensor(bag *b, int64_t uid, cmkd_dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w,
                         int64_t stride) {
  const int64_t dims[4] = {n, c, h, w}, strides[4] = {h * w * stride, 1, w * stride, stride};
  const _Bool inner = uid >= UID_INNER;
  const cudnnDataType_t type = data_type(dtype);
  descriptor t = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(b, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(b, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
  set(b, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
  set_int64(b, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 16);
  set_int64(b, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, uid);
  set(b, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inner);
  finish(b, t, "a tensor");
  return t;
}

static descriptor convolution(bag *b, const cmkd_cuda_conv_shape *s) {
  const cudnnDataType_t type = CUDNN_DATA_FLOAT;
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  const int64_t dilation[2] = {1, 1}, stride[2] = {s->stride, s->stride}, pad[2] = {s->pad, s->pad};
  descriptor c = make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  set(b, c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(b, c, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  set_int64(b, c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, 2);
  set(b, c, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
  set(b, c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
  set(b, c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
  set(b, c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
  finish(b, c, "a convolution");
  return c;
}

/* The three convolutions name the same five things differently. */
static const struct conv_attributes {
  cudnnBackendDescriptorType_t type;
  attribute alpha, beta, conv, x, w, y;
} conv_forward =
    {
        CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
},
  conv_data =
      {
          CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
},
  conv_weights = {
      CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
};

static descriptor pointwise(bag *b, cudnnPointwiseMode_t mode, double upper_clip, descriptor x, descriptor second,
                            descriptor y) {
  const cudnnDataType_t type = CUDNN_DATA_FLOAT;
  descriptor p = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR), operation;
  set(b, p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  set(b, p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &type);
  if (upper_clip > 0) set(b, p, CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP, CUDNN_TYPE_DOUBLE, 1, &upper_clip);
  finish(b, p, "a pointwise function");
  operation = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
  set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
  if (second) set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, second);
  set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
  finish(b, operation, "a pointwise operation");
  return operation;
}

/* Convolution, bias, residual, activation: all but the last write a float tensor that never reaches memory. */
static void build(conv_graph *g, const cmkd_conv_request *r) {
  bag *b = &g->b;
  const cmkd_cuda_conv_shape *s = &r->shape;
  const int x_stride = cmkd_cuda_stride(s->c), padded = s->y_stride == cmkd_cuda_stride(s->k);
  const int c = s->groups > 1 ? s->c : x_stride, k = s->groups == 1 && padded ? s->y_stride : s->k;
  const int fused = r->pass == CMKD_CONV_FORWARD_FUSED, back_data = r->pass == CMKD_CONV_BACKWARD_DATA,
            back_weights = r->pass == CMKD_CONV_BACKWARD_WEIGHTS;
  const struct conv_attributes *names = back_data ? &conv_data : back_weights ? &conv_weights : &conv_forward;
  const float one = 1, beta = back_data && r->accumulate ? 1 : 0;
  descriptor operation[4];
  int operations = 0;

  descriptor x = tensor(b, back_data ? UID_C : UID_A, s->dtype, s->n, c, s->h, s->w, x_stride);
  descriptor w = tensor(b, back_weights ? UID_C : UID_B, s->dtype, k, c / s->groups, s->kh, s->kw, c / s->groups);
  descriptor y = tensor(b,
                        back_data      ? UID_A
                        : back_weights ? UID_B
                                       : UID_C,
                        s->y_dtype, s->n, k, s->oh, s->ow, s->y_stride),
             conv = convolution(b, s);
  descriptor now = fused ? tensor(b, UID_INNER, CMKD_F32, s->n, k, s->oh, s->ow, s->y_stride) : y;
  descriptor o = operation[operations++] = make(b, names->type);
  set(b, o, names->alpha, CUDNN_TYPE_FLOAT, 1, &one);
  set(b, o, names->beta, CUDNN_TYPE_FLOAT, 1, &beta);
  set_part(b, o, names->conv, conv);
  set_part(b, o, names->x, x);
  set_part(b, o, names->w, w);
  set_part(b, o, names->y, now);
  finish(b, o, "a convolution operation");
  if (fused) {
    descriptor bias = tensor(b, UID_BIAS, CMKD_F32, 1, k, 1, 1, k);
    descriptor next =
        r->residual || r->act ? tensor(b, UID_INNER + 1, CMKD_F32, s->n, k, s->oh, s->ow, s->y_stride) : y;
    operation[operations++] = pointwise(b, CUDNN_POINTWISE_ADD, 0, now, bias, next);
    now = next;
    if (r->residual) {
      descriptor residual = tensor(b, UID_RESIDUAL, s->y_dtype, s->n, k, s->oh, s->ow, s->y_stride);
      next = r->act ? tensor(b, UID_INNER + 2, CMKD_F32, s->n, k, s->oh, s->ow, s->y_stride) : y;
      operation[operations++] = pointwise(b, CUDNN_POINTWISE_ADD, 0, now, residual, next);
      now = next;
    }
    if (r->act)
      operation[operations++] = pointwise(b, CUDNN_POINTWISE_RELU_FWD, r->act == CMKD_ACT_RELU6 ? 6 : 0, now, NULL, y);
  }
  g->graph = make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (b->lib->handle) set(b, g->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &b->lib->handle);
  set(b, g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations, operation);
  finish(b, g->graph, "a graph of operations");
}

void cmkd_cudnn_graph_release(conv_graph *g) {
  if (!g || --g->users) return;
  empty(&g->b);
  free(g);
}

cmkd_status cmkd_cudnn_graph_make(const cmkd_cudnn *lib, const cmkd_conv_request *r, conv_graph **out,
                                  cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &r->shape;
  *out = NULL;
  /* depthwise weights have no padding, so there must be none; other groupings are not ours to pad */
  if (s->groups > 1 && (s->groups != s->c || s->c != cmkd_cuda_stride(s->c) || s->k != s->y_stride)) return CMKD_OK;
  conv_graph *g = calloc(1, sizeof *g);
  if (!g) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  g->b.lib = lib;
  g->users = 1;
  build(g, r);
  cmkd_status status = g->b.status == CUDNN_STATUS_SUCCESS || unsupported(g->b.status)
                           ? CMKD_OK
                           : cudnn_fail(lib, err, g->b.status, g->b.what);
  if (g->b.status == CUDNN_STATUS_SUCCESS)
    *out = g;
  else
    cmkd_cudnn_graph_release(g);
  return status;
}
#endif
