/* The few oneDNN calls that dnnl.c makes, spelled once for the two C interfaces: 2.x (descriptors are structs, passed
 * by address) and 3.x (descriptors are handles; operation descriptors are gone). All else is the same in both. */
#ifndef CMKD_KERNELS_CPU_CONV_DNNL_SHIM_H
#define CMKD_KERNELS_CPU_CONV_DNNL_SHIM_H
#include <dnnl.h>
#include <stddef.h>

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t shim_md;          /* owned handle */
typedef const_dnnl_memory_desc_t shim_md_in; /* how calls take and queries give one */
#define SHIM_IN(md) (md)
static inline int shim_md_tag(shim_md *md, int dims, const dnnl_dims_t shape, dnnl_format_tag_t tag) {
  return dnnl_memory_desc_create_with_tag(md, dims, shape, dnnl_f32, tag) == dnnl_success;
}
static inline void shim_md_free(shim_md *md) {
  if (*md) dnnl_memory_desc_destroy(*md);
  *md = NULL;
}
#else
typedef dnnl_memory_desc_t shim_md;
typedef const dnnl_memory_desc_t *shim_md_in;
#define SHIM_IN(md) (&(md))
static inline int shim_md_tag(shim_md *md, int dims, const dnnl_dims_t shape, dnnl_format_tag_t tag) {
  return dnnl_memory_desc_init_by_tag(md, dims, shape, dnnl_f32, tag) == dnnl_success;
}
static inline void shim_md_free(shim_md *md) { (void)md; }
#endif

typedef enum shim_pass { SHIM_FORWARD, SHIM_BACKWARD_DATA, SHIM_BACKWARD_WEIGHTS } shim_pass;
typedef struct shim_conv {
  shim_md src, weights, bias, dst;
  dnnl_dims_t strides, padding, padding_end;
} shim_conv;

/* A convolution's primitive descriptor; `hint` is the forward one for the backward passes. 1 on success. */
static inline int shim_conv_create(dnnl_primitive_desc_t *pd, shim_pass pass, const shim_conv *c, dnnl_engine_t engine,
                                   const_dnnl_primitive_attr_t attr, const_dnnl_primitive_desc_t hint) {
#if DNNL_VERSION_MAJOR >= 3
  const dnnl_dims_t none = {0, 0};
  if (pass == SHIM_FORWARD)
    return dnnl_convolution_forward_primitive_desc_create(pd, engine, dnnl_forward_training, dnnl_convolution_direct,
                                                          c->src, c->weights, c->bias, c->dst, c->strides, none,
                                                          c->padding, c->padding_end, attr) == dnnl_success;
  if (pass == SHIM_BACKWARD_DATA)
    return dnnl_convolution_backward_data_primitive_desc_create(pd, engine, dnnl_convolution_direct, c->src, c->weights,
                                                                c->dst, c->strides, none, c->padding, c->padding_end,
                                                                hint, attr) == dnnl_success;
  return dnnl_convolution_backward_weights_primitive_desc_create(pd, engine, dnnl_convolution_direct, c->src,
                                                                 c->weights, NULL, c->dst, c->strides, none, c->padding,
                                                                 c->padding_end, hint, attr) == dnnl_success;
#else
  dnnl_convolution_desc_t d;
  dnnl_status_t status;
  if (pass == SHIM_FORWARD)
    status = dnnl_convolution_forward_desc_init(&d, dnnl_forward_training, dnnl_convolution_direct, &c->src,
                                                &c->weights, &c->bias, &c->dst, c->strides, c->padding, c->padding_end);
  else if (pass == SHIM_BACKWARD_DATA)
    status = dnnl_convolution_backward_data_desc_init(&d, dnnl_convolution_direct, &c->src, &c->weights, &c->dst,
                                                      c->strides, c->padding, c->padding_end);
  else
    status = dnnl_convolution_backward_weights_desc_init(&d, dnnl_convolution_direct, &c->src, &c->weights, NULL,
                                                         &c->dst, c->strides, c->padding, c->padding_end);
  return status == dnnl_success && dnnl_primitive_desc_create(pd, &d, attr, engine, hint) == dnnl_success;
#endif
}

/* A descriptor that belongs to the primitive descriptor. */
static inline shim_md_in shim_query(const_dnnl_primitive_desc_t pd, dnnl_query_t what) {
  return dnnl_primitive_desc_query_md(pd, what, 0);
}
static inline const char *shim_implementation(const_dnnl_primitive_desc_t pd) {
  const char *name = NULL;
  return dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name) == dnnl_success && name ? name : "";
}
static inline size_t shim_bytes(shim_md_in md) { return md ? dnnl_memory_desc_get_size(md) : 0; }
#endif
