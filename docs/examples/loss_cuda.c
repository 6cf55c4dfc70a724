/* The same loss as loss.c, on buffers of a CUDA device.
 *
 *     cc loss_cuda.c -I/usr/local/cuda/include $(pkg-config --cflags --libs cmkd) -lcmkd-cuda \
 *       -L/usr/local/cuda/lib64 -lcudart */
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "cmkd/loss.h"
#include "cmkd/loss_cuda.h"

enum { B = 2, C = 4 };
static const float student[B][C] = {{1, 2, 3, 0}, {3, 2, 1, 0}};
static const float teacher[B][C] = {{0, 1, 5, -1}, {1, 4, 0, -1}};
static const int32_t labels[B] = {2, 1};

typedef struct device {
  float *student, *teacher, *grad;
  int32_t *labels;
  cmkd_loss_result *result;
  void *scratch;
  cudaStream_t stream;
} device;

static cmkd_status allocate(device *d, const cmkd_loss *loss, cmkd_error *err) {
  const size_t scratch = cmkd_cuda_loss_scratch(loss, B, C);
  if (cudaMalloc((void **)&d->student, sizeof student) || cudaMalloc((void **)&d->teacher, sizeof teacher) ||
      cudaMalloc((void **)&d->grad, sizeof student) || cudaMalloc((void **)&d->labels, sizeof labels) ||
      cudaMalloc((void **)&d->result, sizeof *d->result) || cudaMalloc(&d->scratch, scratch) ||
      cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking) ||
      cudaMemcpy(d->student, student, sizeof student, cudaMemcpyHostToDevice) ||
      cudaMemcpy(d->teacher, teacher, sizeof teacher, cudaMemcpyHostToDevice) ||
      cudaMemcpy(d->labels, labels, sizeof labels, cudaMemcpyHostToDevice))
    return cmkd_fail(err, CMKD_ERR_DEVICE, "%s", cudaGetErrorString(cudaGetLastError()));
  return cmkd_cuda_loss_init(d->scratch, d->stream, err); /* once for fresh scratch */
}

static cmkd_status evaluate(device *d, const cmkd_loss *loss, cmkd_error *err) {
  const cmkd_cuda_loss_batch batch = {.batch = B,
                                      .classes = C,
                                      .student = d->student,
                                      .student_dtype = CMKD_F32,
                                      .teacher = d->teacher,
                                      .teacher_dtype = CMKD_F32,
                                      .labels = d->labels,
                                      .grad = d->grad,
                                      .epoch = 1,
                                      .entropy_mean = NAN};
  cmkd_loss_result result;
  float grad[B][C];
  CMKD_TRY(cmkd_cuda_loss_eval(loss, &batch, d->scratch, d->result, d->stream, err)); /* queued, not waited for */
  if (cudaStreamSynchronize(d->stream) || cudaMemcpy(&result, d->result, sizeof result, cudaMemcpyDeviceToHost) ||
      cudaMemcpy(grad, d->grad, sizeof grad, cudaMemcpyDeviceToHost))
    return cmkd_fail(err, CMKD_ERR_DEVICE, "%s", cudaGetErrorString(cudaGetLastError()));
  printf("%s\nloss %.6f\n", cmkd_loss_text(loss), result.loss);
  for (int r = 0; r < B; r++)
    printf("gradient of row %d: %.5f %.5f %.5f %.5f\n", r, grad[r][0], grad[r][1], grad[r][2], grad[r][3]);
  return CMKD_OK;
}

int main(void) {
  int devices = 0;
  cmkd_error err;
  cmkd_loss *loss;
  device d;
  memset(&d, 0, sizeof d);
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    puts("no CUDA device here");
    return 0;
  }
  if (cmkd_loss_parse("ce:1+kd:1,T=2", CMKD_LOSS_CIFAR, &loss, &err) != CMKD_OK) return 2;
  cmkd_status status = allocate(&d, loss, &err);
  if (status == CMKD_OK) status = evaluate(&d, loss, &err);
  if (status != CMKD_OK) fprintf(stderr, "%s\n", err.message);
  cudaFree(d.student);
  cudaFree(d.teacher);
  cudaFree(d.grad);
  cudaFree(d.labels);
  cudaFree(d.result);
  cudaFree(d.scratch);
  if (d.stream) cudaStreamDestroy(d.stream);
  cmkd_loss_free(loss);
  return status == CMKD_OK ? 0 : 1;
}
