/* The SIMT emulation finds what it claims to find; and sorting and pooling by themselves: block boundaries equal the
 * reference's. */
#include "tests/support.h"
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/rng.h"
#include "kernels/ref/loss_rank.h"
#include "tests/simt/emulate.h"
#include "tests/simt/runtime.h"
#include "tests/simt/test_simt.h"

static void broken_rules_are_named(void **state) {
  (void)state;
  static const struct {
    const char *kernel;
    int threads;
    const char *says;
  } cases[] = {
      {"divergent_barrier", 64, "divergent barrier"},       {"early_exit", 64, "another thread has ended"},
      {"barrier_against_shuffle", 32, "divergent barrier"}, {"lane_outside", 32, "outside a width of 32"},
      {"lane_not_in_mask", 32, "not in the mask"},          {"not_in_own_mask", 32, "not in its own mask"},
      {"mixed_operations", 32, "different operations"},     {"no_dynamic_memory", 32, "the launch gave none"},
      {"good_reversal", 1025, "a block of 1025 threads"},   {"matrix_misaligned", 32, "a multiple of 32 bytes"},
      {"matrix_lines_misaligned", 32, "leading dimension"}, {"product_of_half_a_warp", 32, "has ended"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    for (int order = 0; order < CMKD_SIMT_ORDERS; order++) {
      int out[64];
      cmkd_simt_order(order, 1);
      assert_false(simt_run(cases[i].kernel, cases[i].threads, out));
      const char *problem = cmkd_simt_problem();
      if (!strstr(problem, cases[i].says))
        fail_msg("%s, order %d: \"%s\" says nothing of \"%s\"", cases[i].kernel, order, problem, cases[i].says);
      assert_true(simt_run("good_reversal", 64, out)); /* and nothing is left over */
      assert_string_equal(cmkd_simt_problem(), "");
    }
}

static void a_missing_barrier_shows(void **state) {
  (void)state;
  int wrong[CMKD_SIMT_ORDERS] = {0}, all = 0;
  for (int order = 0; order < CMKD_SIMT_ORDERS; order++) {
    int out[64];
    cmkd_simt_order(order, 1);
    assert_true(simt_run("missing_barrier", 64, out));
    for (int i = 0; i < 64; i++)
      wrong[order] += out[i] != 63 - i;
    all += wrong[order];
    assert_true(simt_run("good_reversal", 64, out));
    for (int i = 0; i < 64; i++)
      assert_int_equal(out[i], 63 - i);
  }
  assert_true(all > 0 && wrong[CMKD_SIMT_FORWARD] > 0 && wrong[CMKD_SIMT_REVERSE] > 0);
}

static void shared_memory_is_poisoned_and_fenced(void **state) {
  (void)state;
  int out[64];
  assert_true(simt_run("unwritten_shared", 64, out));
  for (int i = 0; i < 64; i++)
    assert_int_equal(out[i], -1);
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    fclose(stderr);
    close(2);
    simt_run("shared_overrun", 64, out);
    _exit(0); /* AddressSanitizer did not stop it */
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void warp_operations_mean_what_they_should(void **state) {
  (void)state;
  for (int order = 0; order < CMKD_SIMT_ORDERS; order++) {
    int out[64];
    cmkd_simt_order(order, 7);
    assert_true(simt_run("warp_operations", 64, out));
    for (int i = 0; i < 64; i++)
      assert_int_equal(out[i], 0);
  }
}

static void tensor_cores_multiply(void **state) {
  (void)state;
  for (int order = 0; order < CMKD_SIMT_ORDERS; order++) {
    int out[64];
    cmkd_simt_order(order, 3);
    assert_true(simt_run("half_products", 32, out));
    for (int i = 0; i < 32; i++)
      assert_int_equal(out[i], 0);
    assert_true(simt_run("bfloat16_products", 32, out));
    for (int i = 0; i < 32; i++)
      assert_int_equal(out[i], 0);
  }
}

static void hull_case(int n, int threads, int kind) {
  double *theta = malloc((size_t)n * 8), *values = malloc((size_t)n * 8), *Y = malloc((size_t)(n + 1) * 8),
         *rank = malloc((size_t)n * 8);
  int32_t *order = malloc((size_t)n * 4), *block_of = malloc((size_t)n * 4);
  uint32_t *list = malloc((size_t)n * 4);
  cmkd_rng rng = cmkd_rng_start((uint64_t)(n * 100 + threads), CMKD_STREAM_TEST, (uint64_t)kind);
  const double spread = kind == 0 ? n / 2. : kind == 1 ? .1 : kind == 2 ? 100. * n : n / 8.;
  for (int i = 0; i < n; i++) {
    theta[i] = cmkd_rng_normal(&rng) * spread;
    if (kind == 3) theta[i] = floor(theta[i] / n * 20) * n / 20; /* ties */
  }
  cmkd_ref_order(theta, n, order);
  const int64_t blocks = cmkd_ref_soft_rank(theta, order, n, rank, block_of);
  for (int i = 0; i < n; i++)
    values[i] = theta[order[i]] - (n - i) + .5 * (n + 1);
  for (int o = 0; o < CMKD_SIMT_ORDERS; o++) {
    cmkd_simt_order(o, 11);
    memset(list, 0xFF, (size_t)n * 4);
    const int got = simt_hull(values, n, threads, Y, list);
    if (got != blocks)
      fail_msg("n %d threads %d kind %d order %d: %d blocks, reference %d", n, threads, kind, o, got, (int)blocks);
    for (int i = 0, b = 0; i < n; i++) {
      if (b < got && list[b] == (uint32_t)i) b++;
      assert_int_equal(b - 1, block_of[i]);
    }
  }
  free(theta);
  free(values);
  free(Y);
  free(rank);
  free(order);
  free(block_of);
  free(list);
}

static void blocks_are_the_reference_s(void **state) {
  (void)state;
  static const int n[] = {2, 3, 7, 31, 32, 33, 100, 257, 1000, 3000};
  for (size_t i = 0; i < sizeof n / sizeof n[0]; i++)
    for (int kind = 0; kind < 4; kind++) {
      hull_case(n[i], 32, kind);
      if (n[i] < 1000 || kind == 0) hull_case(n[i], n[i] < 64 ? 64 : 256, kind);
    }
}

static void sorting_is_stable_and_shares_tied_ranks(void **state) {
  (void)state;
  static const int n[] = {1, 2, 100, 777, 1024};
  for (size_t k = 0; k < sizeof n / sizeof n[0]; k++)
    for (int order = 0; order < CMKD_SIMT_ORDERS; order++) {
      float *values = malloc((size_t)n[k] * 4);
      double *wide = malloc((size_t)n[k] * 8), *rank = malloc((size_t)n[k] * 8);
      int *got = malloc((size_t)n[k] * 4), *twice = malloc((size_t)n[k] * 4);
      int32_t *want = malloc((size_t)n[k] * 4);
      cmkd_rng rng = cmkd_rng_start((uint64_t)n[k], CMKD_STREAM_TEST, (uint64_t)order);
      for (int i = 0; i < n[k]; i++) {
        values[i] = (float)cmkd_rng_normal(&rng) * 1000;
        if (i % 3 == 0) values[i] = floorf(values[i] / 500);
        if (i % 50 == 0) values[i] = i % 100 ? 0.0f : -0.0f; /* equal */
        wide[i] = values[i];
      }
      cmkd_ref_order(wide, n[k], want);
      cmkd_ref_hard_rank(wide, want, n[k], rank);
      cmkd_simt_order(order, 13);
      assert_true(simt_sort(values, n[k], got, twice));
      for (int i = 0; i < n[k]; i++) {
        assert_int_equal(got[i], want[i]);
        assert_true(twice[i] == (int)(2 * rank[i]));
      }
      free(values);
      free(wide);
      free(rank);
      free(got);
      free(twice);
      free(want);
    }
}

/* What a capture does not allow spoils it, by the name that a device gives it; afterwards all is as before. */
static void captures_keep_to_the_rules(void **state) {
  (void)state;
  enum { GOOD, JOINED, UNJOINED, WAITS, FOREIGN_STREAM, FOREIGN_EVENT, ALLOCATES, KINDS };
  static const cudaError_t want[KINDS] = {cudaSuccess,
                                          cudaSuccess,
                                          cudaErrorStreamCaptureUnjoined,
                                          cudaErrorStreamCaptureInvalidated,
                                          cudaErrorStreamCaptureInvalidated,
                                          cudaErrorStreamCaptureInvalidated,
                                          cudaSuccess};
  cudaStream_t stream, side;
  cudaEvent_t fork, join, outside;
  char *memory;
  float ms;
  assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  assert_int_equal(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking), cudaSuccess);
  assert_int_equal(cudaEventCreate(&fork), cudaSuccess);
  assert_int_equal(cudaEventCreate(&join), cudaSuccess);
  assert_int_equal(cudaEventCreate(&outside), cudaSuccess);
  assert_int_equal(cudaMalloc((void **)&memory, 2), cudaSuccess);
  assert_int_equal(cudaEventRecord(outside, stream), cudaSuccess);
  for (int kind = 0; kind < KINDS; kind++) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    void *more;
    assert_int_equal(cudaMemset(memory, 9, 2), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    assert_int_equal(cudaMemsetAsync(memory, 1, 1, stream), cudaSuccess);
    if (kind == JOINED || kind == UNJOINED) {
      assert_int_equal(cudaEventRecord(fork, stream), cudaSuccess);
      assert_int_equal(cudaStreamWaitEvent(side, fork, 0), cudaSuccess);
      assert_int_equal(cudaMemsetAsync(memory + 1, 2, 1, side), cudaSuccess);
      assert_int_equal(cudaEventRecord(join, side), cudaSuccess);
      if (kind == JOINED) assert_int_equal(cudaStreamWaitEvent(stream, join, 0), cudaSuccess);
    }
    if (kind == WAITS) assert_int_equal(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
    if (kind == FOREIGN_STREAM) assert_int_not_equal(cudaMemsetAsync(memory, 3, 1, side), cudaSuccess);
    if (kind == FOREIGN_EVENT)
      assert_int_equal(cudaStreamWaitEvent(stream, outside, 0), cudaErrorStreamCaptureIsolation);
    if (kind == ALLOCATES) assert_int_equal(cudaMalloc(&more, 1), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), want[kind]);
    (void)cudaGetLastError();
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(memory[0], 9); /* nothing has run */
    assert_int_equal(graph != NULL, want[kind] == cudaSuccess);
    if (!graph) continue;
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(memory[0], 1);
    assert_int_equal(memory[1], kind == JOINED ? 2 : 9);
    assert_int_equal(cudaGraphExecDestroy(exec), cudaSuccess);
    if (kind != JOINED) continue;
    assert_int_equal(cudaEventElapsedTime(&ms, outside, fork), cudaErrorInvalidResourceHandle); /* captured: no time */
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidResourceHandle);                       /* told once */
    assert_int_equal(cudaGetLastError(), cudaSuccess);
  }
  cudaEventDestroy(fork);
  cudaEventDestroy(join);
  cudaEventDestroy(outside);
  cudaStreamDestroy(stream);
  cudaStreamDestroy(side);
  cudaFree(memory);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(broken_rules_are_named),
      cmocka_unit_test(a_missing_barrier_shows),
      cmocka_unit_test(shared_memory_is_poisoned_and_fenced),
      cmocka_unit_test(warp_operations_mean_what_they_should),
      cmocka_unit_test(tensor_cores_multiply),
      cmocka_unit_test(captures_keep_to_the_rules),
      cmocka_unit_test(blocks_are_the_reference_s),
      cmocka_unit_test(sorting_is_stable_and_shares_tied_ranks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
