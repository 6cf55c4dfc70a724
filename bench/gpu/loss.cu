/* The CMKD loss on a GPU, timed: forward and backward at the sizes of docs/losses.md, beside two of CUB's segmented
 * sorts of the same rows (C = 32768) and beside the time that the bytes alone would take. Prints a table and one JSON
 * line a case. make bench-gpu     (or BUILD/bench/gpu/loss [rounds]) Every figure is a median over `rounds` (default
 * 21) of a CUDA-graph replay of many calls, cycling through input sets that together do not fit in L2. The entropy of
 * the batch is given, so that a call is one launch for C <= 8192; the row "with entropy" lets it be computed. */
#include <cub/device/device_segmented_sort.cuh>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <algorithm>
#include <vector>
#include "cmkd/loss_cuda.h"

#define CHECK(call) \
  do { \
    cudaError_t e_ = (call); \
    if (e_ != cudaSuccess) { \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_)); \
      exit(1); \
    } \
  } while (0)
#define TRY(call) \
  do { \
    if ((call) != CMKD_OK) { \
      fprintf(stderr, "%s: %s\n", #call, err.message); \
      exit(1); \
    } \
  } while (0)

static cmkd_error err;

__global__ void fill_kernel(float *x, int64_t n, uint32_t seed, const float *base, float mix) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
    uint32_t h = (uint32_t)i * 2654435761u ^ seed;
    float sum = 0;
    for (int k = 0; k < 12; k++) {
      h ^= h << 13;
      h ^= h >> 17;
      h ^= h << 5;
      sum += (float)(h >> 8) * (1.0f / 16777216);
    }
    x[i] = 2 * (sum - 6) + (base ? mix * base[i] : 0);
  }
}
__global__ void label_kernel(int32_t *labels, int B, int C) {
  for (int i = threadIdx.x; i < B; i += blockDim.x)
    labels[i] = (i * 7919) % C;
}
__global__ void index_kernel(int *index, int64_t n, int C) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
    index[i] = (int)(i % C);
}
__global__ void offset_kernel(int *offset, int B, int C) {
  for (int i = threadIdx.x; i <= B; i += blockDim.x)
    offset[i] = i * C;
}

struct set {
  float *student, *teacher, *grad;
};
struct inputs {
  int B, C;
  std::vector<set> sets;
  int32_t *labels;
};

static inputs make(int B, int C, size_t cache) {
  inputs in = {B, C, {}, nullptr};
  const size_t n = (size_t)B * C;
  const size_t count = std::min<size_t>(64, std::max<size_t>(2, 2 * cache / (12 * n) + 1));
  for (size_t i = 0; i < count; i++) {
    set s;
    CHECK(cudaMalloc(&s.student, n * 4));
    CHECK(cudaMalloc(&s.teacher, n * 4));
    CHECK(cudaMalloc(&s.grad, n * 4));
    fill_kernel<<<256, 256>>>(s.teacher, n, 17 + (uint32_t)i, nullptr, 0);
    fill_kernel<<<256, 256>>>(s.student, n, 91 + (uint32_t)i, s.teacher, .7f);
    in.sets.push_back(s);
  }
  CHECK(cudaMalloc(&in.labels, (size_t)B * 4));
  label_kernel<<<1, 256>>>(in.labels, B, C);
  CHECK(cudaDeviceSynchronize());
  return in;
}
static void release(inputs &in) {
  for (set &s : in.sets) {
    cudaFree(s.student);
    cudaFree(s.teacher);
    cudaFree(s.grad);
  }
  cudaFree(in.labels);
}

/* Microseconds a call: median over rounds of a graph of `calls` calls. */
template <class F> static double measure(int rounds, int calls, F call) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t start, stop;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  call(0, stream); /* outside the graph first: attributes, module load */
  CHECK(cudaStreamSynchronize(stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; i++)
    call(i, stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<double> times;
  for (int r = 0; r < rounds + 3; r++) {
    float ms;
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaEventSynchronize(stop));
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (r >= 3) times.push_back(1000.0 * ms / calls);
  }
  std::sort(times.begin(), times.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaStreamDestroy(stream);
  return times[times.size() / 2];
}

static double copy_bandwidth(int rounds) { /* bytes read and written, GB/s */
  const size_t bytes = (size_t)1 << 30;
  char *a, *b;
  CHECK(cudaMalloc(&a, bytes));
  CHECK(cudaMalloc(&b, bytes));
  const double us = measure(
      rounds, 4, [&](int, cudaStream_t s) { CHECK(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, s)); });
  cudaFree(a);
  cudaFree(b);
  return 2.0 * bytes / us / 1000;
}

static double time_loss(const char *text, const inputs &in, double entropy, int rounds) {
  cmkd_loss *loss;
  TRY(cmkd_loss_parse(text, CMKD_LOSS_CIFAR, &loss, &err));
  void *scratch;
  cmkd_loss_result *result, host;
  CHECK(cudaMalloc(&scratch, cmkd_cuda_loss_scratch(loss, in.B, in.C)));
  CHECK(cudaMalloc(&result, sizeof *result));
  TRY(cmkd_cuda_loss_init(scratch, nullptr, &err));
  CHECK(cudaDeviceSynchronize());
  const int calls = std::max<int>((int)in.sets.size(), (size_t)in.B * in.C > 1000000 ? 4 : 64);
  const double us = measure(rounds, calls, [&](int i, cudaStream_t s) {
    const set &x = in.sets[i % in.sets.size()];
    cmkd_cuda_loss_batch b = {in.B,      in.C,   x.student,           CMKD_F32, x.teacher, CMKD_F32,
                              in.labels, x.grad, CMKD_LOSS_NO_WARMUP, 0,        entropy};
    TRY(cmkd_cuda_loss_eval(loss, &b, scratch, result, s, &err));
  });
  CHECK(cudaMemcpy(&host, result, sizeof host, cudaMemcpyDeviceToHost));
  if (!(host.loss > 0) || host.bad_row >= 0) {
    fprintf(stderr, "%s: loss %g, bad row %lld: not a timing\n", text, host.loss, (long long)host.bad_row);
    exit(1);
  }
  cudaFree(scratch);
  cudaFree(result);
  cmkd_loss_free(loss);
  return us;
}

/* Two segmented sorts of (logit, class) pairs: what a soft rank and a hard rank need at least, from a library. */
static double time_cub(const inputs &in, int rounds) {
  const int64_t n = (int64_t)in.B * in.C;
  float *keys;
  int *index, *order, *offset;
  void *temp = nullptr;
  size_t bytes = 0;
  CHECK(cudaMalloc(&keys, n * 4));
  CHECK(cudaMalloc(&index, n * 4));
  CHECK(cudaMalloc(&order, n * 4));
  CHECK(cudaMalloc(&offset, ((size_t)in.B + 1) * 4));
  index_kernel<<<256, 256>>>(index, n, in.C);
  offset_kernel<<<1, 256>>>(offset, in.B, in.C);
  auto sort = [&](const float *logits, cudaStream_t s) {
    CHECK(cub::DeviceSegmentedSort::SortPairsDescending(temp, bytes, logits, keys, index, order, n, in.B, offset,
                                                        offset + 1, s));
  };
  sort(in.sets[0].student, nullptr);
  CHECK(cudaMalloc(&temp, bytes));
  CHECK(cudaDeviceSynchronize());
  /* this sort reads sizes back, so it is not captured: events around pairs of calls */
  cudaEvent_t start, stop;
  std::vector<double> times;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  for (int r = 0; r < rounds + 3; r++) {
    const set &x = in.sets[r % in.sets.size()];
    float ms;
    CHECK(cudaEventRecord(start));
    sort(x.student, nullptr);
    sort(x.teacher, nullptr);
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (r >= 3) times.push_back(1000.0 * ms);
  }
  std::sort(times.begin(), times.end());
  cudaFree(keys);
  cudaFree(index);
  cudaFree(order);
  cudaFree(offset);
  cudaFree(temp);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return times[times.size() / 2];
}

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? std::max(1, atoi(argv[1])) : 21;
  cudaDeviceProp device;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    printf("SKIP: no GPU here\n");
    return 0;
  }
  CHECK(cudaGetDeviceProperties(&device, 0));
  const double bandwidth = copy_bandwidth(rounds);
  printf("%s, %d multiprocessors, copy %.0f GB/s\n%-34s %8s %8s %10s %9s\n", device.name, device.multiProcessorCount,
         bandwidth, "case", "B", "C", "us", "bytes us");
  struct test {
    const char *name, *loss;
    int B, C;
    double entropy;
  };
  const test tests[] = {{"cmkd", "cmkd", 64, 100, 1.0},
                        {"cmkd, with entropy", "cmkd", 64, 100, NAN},
                        {"kd", "kd", 64, 100, NAN},
                        {"dkd+cmkd", "dkd+cmkd", 64, 100, 1.0},
                        {"dist", "dist", 64, 100, NAN},
                        {"cmkd", "cmkd", 512, 1000, 1.0},
                        {"cmkd, with entropy", "cmkd", 512, 1000, NAN},
                        {"kd", "kd", 512, 1000, NAN},
                        {"cmkd", "cmkd", 256, 8192, 1.0},
                        {"cmkd", "cmkd", 256, 32768, 1.0}};
  for (const test &t : tests) {
    inputs in = make(t.B, t.C, (size_t)device.l2CacheSize);
    const double us = time_loss(t.loss, in, t.entropy, rounds), least = 12.0 * t.B * t.C / bandwidth / 1000;
    printf("%-34s %8d %8d %10.2f %9.2f\n", t.name, t.B, t.C, us, least);
    double cub = t.C >= 32768 ? time_cub(in, rounds) : 0;
    if (cub > 0)
      printf("%-34s %8d %8d %10.2f   cmkd takes %.2f times that\n", "two CUB segmented sorts", t.B, t.C, cub, us / cub);
    printf("{\"bench\":\"loss-gpu\",\"device\":\"%s\",\"case\":\"%s\",\"batch\":%d,\"classes\":%d,\"us\":%.3f,\"bytes_"
           "us\":%.3f,\"cub_two_sorts_us\":%.3f,\"rounds\":%d}\n",
           device.name, t.name, t.B, t.C, us, least, cub, rounds);
    release(in);
  }
  return 0;
}
