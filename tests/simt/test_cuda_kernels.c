/* The CUDA kernels beside the losses, against the plain ones: agreement figures, crops and flips, cache rows, SGD. */
#include "tests/simt/gpu.h"
#include <math.h>
#include "base/half.h"
#include "base/rng.h"
#include "formats/cache/codec.h"
#include "kernels/augment.h"
#include "kernels/cuda/step.h"
#include "kernels/loss.h"
#include "kernels/ref/ops.h"

static void agreement_case(int64_t B, int64_t C, double kappa, int coarse) {
  cmkd_error err;
  size_t n = (size_t)(B * C);
  float *s = malloc(n * 4);
  uint16_t *t = malloc(n * 2);
  double *sd = malloc(n * 8), *td = malloc(n * 8), want[3] = {0}, one[3];
  cmkd_rng rng = cmkd_rng_start((uint64_t)(B * 7919 + C), CMKD_STREAM_TEST, 1);
  for (size_t i = 0; i < n; i++) {
    double v = cmkd_rng_normal(&rng) * 3;
    t[i] = cmkd_float_to_half((float)(coarse ? floor(v) : v));
    td[i] = cmkd_half_to_float(t[i]);
    sd[i] = s[i] = (float)(coarse ? floor(v + cmkd_rng_normal(&rng)) : v + cmkd_rng_normal(&rng));
    if (B > 2 && (int64_t)i / C == 1) sd[i] = s[i] = 4; /* a degenerate row */
  }
  for (int64_t r = 0; r < B; r++) {
    assert_ok(cmkd_agreement_ref(C, sd + r * C, td + r * C, kappa, one, one + 1, one + 2, &err));
    for (int k = 0; k < 3; k++)
      want[k] += one[k];
  }
  for (int order = 0; order < ORDERS; order++) {
    set_order(order, 5);
    cmkd_agreement got = {.rows = 0};
    void *scratch = gpu_buffer(gpu->agreement_scratch(B, C)), *sums = gpu_put(&got, sizeof got),
         *student = gpu_put(s, n * 4), *teacher = gpu_put(t, n * 2);
    const cmkd_cuda_agreement_batch batch = {B, C, student, teacher, CMKD_F32, CMKD_F16, kappa};
    assert_ok(gpu->loss_init(scratch, NULL, &err));
    for (int k = 0; k < 2; k++)
      assert_ok(gpu->agreement_add(&batch, scratch, sums, NULL, &err));
    gpu_get(&got, sums, sizeof got);
    gpu_clear();
    assert_int_equal(got.rows, 2 * B);
    if (fabs(got.pearson - 2 * want[0]) > 1e-6 * (double)B || fabs(got.spearman - 2 * want[1]) > 1e-9 * (double)B ||
        fabs(got.blocks - 2 * want[2]) > 1e-12 * (double)B)
      fail_msg("B %d C %d order %d: %.9g %.9g %.9g, reference %.9g %.9g %.9g", (int)B, (int)C, order, got.pearson,
               got.spearman, got.blocks, 2 * want[0], 2 * want[1], 2 * want[2]);
  }
  free(s);
  free(t);
  free(sd);
  free(td);
}

static void agreement_is_the_reference(void **state) {
  (void)state;
  NEED_GPU();
  static const int C[] = {2, 3, 10, 100, 128, 129, 300, 1000};
  for (size_t i = 0; i < sizeof C / sizeof *C; i++)
    agreement_case(C[i] > 200 ? 1 : 5, C[i], 2, i % 2 == 1);
  agreement_case(1, 40, 1000, 0);
}

static void agreement_of_rows_in_device_memory(void **state) {
  (void)state;
  NEED_GPU();
  agreement_case(1, 8200, 2, 1);
}

/* Every variant of every policy, more images than a block, odd sizes. */
static void images_are_the_same_bytes(void **state) {
  (void)state;
  NEED_GPU();
  static const int shapes[][3] = {{32, 32, 3}, {28, 28, 1}, {5, 3, 3}, {2, 9, 4}};
  const float mean[] = {.5f, .4f, .3f, .2f}, std[] = {.25f, .3f, .35f, .1f};
  cmkd_error err;
  for (int policy = CMKD_AUGMENT_NONE; policy <= CMKD_AUGMENT_CROP_FLIP; policy++)
    for (int k = 0; k < 4; k++) {
      const int h = shapes[k][0], w = shapes[k][1], c = shapes[k][2], n = 4,
                count = k == 0 && policy == CMKD_AUGMENT_CROP_FLIP ? 24 : 170 / (k == 0 ? 16 : 1);
      const size_t image = (size_t)(h * w * c);
      uint8_t *pixels = malloc(n * image), *want = malloc((size_t)count * image), *got = malloc((size_t)count * image);
      uint32_t *rows = malloc((size_t)count * 4);
      uint64_t *seeds = malloc((size_t)count * 8);
      float table[4 * 256];
      cmkd_rng rng = cmkd_rng_start((uint64_t)(policy * 10 + k), CMKD_STREAM_TEST, 2);
      for (size_t i = 0; i < n * image; i++)
        pixels[i] = (uint8_t)cmkd_rng_u32(&rng);
      for (int i = 0; i < count; i++) {
        rows[i] = cmkd_rng_below(&rng, n);
        seeds[i] = i % 2 ? (uint64_t)i : cmkd_rng_u64(&rng);
      }
      cmkd_cuda_pixel_table(mean, std, c, table);
      for (int clean = 0; clean < 2; clean++) {
        set_order(k % ORDERS, 1);
        void *d_pixels = gpu_put(pixels, n * image), *d_rows = gpu_put(rows, (size_t)count * 4),
             *d_seeds = clean ? NULL : gpu_put(seeds, (size_t)count * 8), *d_got = gpu_buffer((size_t)count * image);
        const cmkd_gather on_host = {(cmkd_policy)policy, pixels, rows, clean ? NULL : seeds, count, h, w, c};
        const cmkd_gather gather = {(cmkd_policy)policy, d_pixels, d_rows, d_seeds, count, h, w, c};
        cmkd_augment_bytes_cpu(&on_host, want);
        assert_ok(gpu->augment_bytes(&gather, d_got, NULL, &err));
        gpu_get(got, d_got, (size_t)count * image);
        assert_memory_equal(got, want, (size_t)count * image);
        for (int stride = c; stride <= 8; stride += 8 - c) {
          const size_t floats = (size_t)(count * h * w * stride);
          float *want_f = malloc(floats * 4), *got_f = malloc(floats * 4);
          void *d_table = gpu_put(table, sizeof table), *d_f = gpu_buffer(floats * 4);
          cmkd_augment_cpu(&on_host, mean, std, stride, want_f);
          assert_ok(gpu->augment(&gather, d_table, stride, CMKD_F32, d_f, NULL, &err));
          gpu_get(got_f, d_f, floats * 4);
          assert_memory_equal(got_f, want_f, floats * 4);
          uint16_t *narrow = malloc(floats * 2);
          for (int half = 0; half < 2; half++) {
            assert_ok(gpu->augment(&gather, d_table, stride, half ? CMKD_F16 : CMKD_BF16, d_f, NULL, &err));
            gpu_get(narrow, d_f, floats * 2);
            for (size_t i = 0; i < floats; i++)
              assert_int_equal(narrow[i], half ? cmkd_float_to_half(want_f[i]) : cmkd_float_to_bf16(want_f[i]));
          }
          free(narrow);
          free(want_f);
          free(got_f);
        }
        gpu_clear();
      }
      free(pixels);
      free(want);
      free(got);
      free(rows);
      free(seeds);
    }
}

static void cache_rows_decode_as_on_the_cpu(void **state) {
  (void)state;
  NEED_GPU();
  enum { N = 9, C = 300, COUNT = 5 };
  static const uint32_t index[COUNT] = {8, 0, 3, 3, 7};
  static float logits[N * C], want[COUNT * C], got[COUNT * C];
  static uint8_t q[N * C];
  static uint16_t half[N * C], top[N], range[N];
  const cmkd_codec *codec;
  cmkd_error err;
  cmkd_rng rng = cmkd_rng_start(4, CMKD_STREAM_TEST, 3);
  for (int i = 0; i < N * C; i++)
    half[i] = cmkd_float_to_half(logits[i] = (float)cmkd_rng_normal(&rng) * 5);
  assert_ok(cmkd_codec_find("u8sqrt", &codec, &err));
  codec->encode(logits, N, C, q, top, range);
  cmkd_chunk_view chunk = {q, N * C, C, top, range};
  for (int i = 0; i < COUNT; i++)
    codec->decode(&chunk, index[i], 1, want + i * C);
  for (int order = 0; order < ORDERS; order++) {
    set_order(order, 2);
    void *d_index = gpu_put(index, sizeof index), *out = gpu_buffer(sizeof got);
    const cmkd_cuda_stored_rows narrow = {CMKD_U8, C, gpu_put(q, sizeof q), gpu_put(top, sizeof top),
                                          gpu_put(range, sizeof range)},
                                halves = {CMKD_F16, C, gpu_put(half, sizeof half), NULL, NULL},
                                floats = {CMKD_F32, C, gpu_put(logits, sizeof logits), NULL, NULL};
    assert_ok(gpu->rows(&narrow, d_index, COUNT, out, NULL, &err));
    gpu_get(got, out, sizeof got);
    assert_memory_equal(got, want, sizeof got);
    assert_ok(gpu->rows(&halves, d_index, COUNT, out, NULL, &err));
    gpu_get(got, out, sizeof got);
    for (int i = 0; i < COUNT * C; i++)
      assert_true(got[i] == cmkd_half_to_float(half[index[i / C] * C + (uint32_t)(i % C)]));
    assert_ok(gpu->rows(&floats, d_index, COUNT, out, NULL, &err));
    gpu_get(got, out, sizeof got);
    for (int i = 0; i < COUNT * C; i++)
      assert_true(got[i] == logits[index[i / C] * C + (uint32_t)(i % C)]);
    gpu_clear();
  }
}

/* The optimizer over chunks, some of whose gradients are 16 bits wide and scaled. */
static void sgd_is_the_reference(void **state) {
  (void)state;
  NEED_GPU();
  enum { N = 3 * CMKD_CUDA_CHUNK };
  static float w[N], m[N], g[N], w2[N], m2[N];
  static double wd[N], md[N], gd[N];
  static uint16_t copy[N], narrow[N];
  static const uint8_t from16[3] = {0, 1, 0};
  cmkd_error err;
  for (int variant = 0; variant < 4; variant++) {
    cmkd_rng rng = cmkd_rng_start(6, CMKD_STREAM_TEST, (uint64_t)variant);
    const cmkd_dtype dtype = variant & 2 ? CMKD_BF16 : CMKD_F16;
    cmkd_cuda_state s = {.lr = .05f, .scale = variant & 2 ? 1 : 256};
    cmkd_cuda_update u = {.count = N, .momentum = .9f, .decay = 5e-4f, .nesterov = variant & 1, .copy_dtype = dtype};
    for (int i = 0; i < N; i++) {
      wd[i] = w[i] = (float)cmkd_rng_normal(&rng);
      md[i] = m[i] = (float)cmkd_rng_normal(&rng);
      g[i] = (float)cmkd_rng_normal(&rng) * s.scale;
      narrow[i] = dtype == CMKD_F16 ? cmkd_float_to_half(g[i]) : cmkd_float_to_bf16(g[i]);
      gd[i] = (double)(from16[i / CMKD_CUDA_CHUNK]
                           ? dtype == CMKD_F16 ? cmkd_half_to_float(narrow[i]) : cmkd_bf16_to_float(narrow[i])
                           : g[i]) /
              (double)s.scale;
      if (from16[i / CMKD_CUDA_CHUNK]) g[i] = NAN; /* not to be read */
    }
    set_order(variant % ORDERS, 3);
    u.w = gpu_put(w, sizeof w), u.m = gpu_put(m, sizeof m), u.grad = gpu_put(g, sizeof g),
    u.grad16 = gpu_put(narrow, sizeof narrow), u.from16 = gpu_put(from16, sizeof from16);
    u.copy = gpu_buffer(sizeof copy);
    for (int step = 0; step < 3; step++) {
      assert_ok(GPU(cmkd_cuda_sgd)(&u, gpu_put(&s, sizeof s), NULL, &err));
      cmkd_ref_sgd(wd, md, gd, N, (double)s.lr, (double)u.momentum, (double)u.decay, u.nesterov);
    }
    gpu_get(w, u.w, sizeof w);
    gpu_get(m, u.m, sizeof m);
    gpu_get(copy, u.copy, sizeof copy);
    for (int i = 0; i < N; i++) {
      assert_true(fabs(w[i] - wd[i]) <= 1e-6 * fmax(1, fabs(wd[i])) &&
                  fabs(m[i] - md[i]) <= 2e-6 * fmax(1, fabs(md[i])));
      assert_int_equal(copy[i], dtype == CMKD_F16 ? cmkd_float_to_half(w[i]) : cmkd_float_to_bf16(w[i]));
    }
    for (int why = 0; why < 2; why++) { /* nothing moves */
      s.skip = !why, s.overflow = why;
      assert_ok(GPU(cmkd_cuda_sgd)(&u, gpu_put(&s, sizeof s), NULL, &err));
      gpu_get(w2, u.w, sizeof w);
      gpu_get(m2, u.m, sizeof m);
      assert_memory_equal(w, w2, sizeof w);
      assert_memory_equal(m, m2, sizeof m);
    }
    gpu_clear();
  }
}

/* An infinity among the gradients that count, of either width, is seen; one in a place that does not count is not. */
static void overflow_is_seen(void **state) {
  (void)state;
  NEED_GPU();
  enum { N = 2 * CMKD_CUDA_CHUNK };
  static float g[N];
  static uint16_t narrow[N];
  static const uint8_t from16[2] = {0, 1};
  static const struct {
    int at, wide;
    float value;
    int seen;
  } cases[] = {{5, 1, 0, 0},      {5, 1, INFINITY, 1}, {1023, 1, NAN, 1},
               {1030, 1, NAN, 0}, {5, 0, INFINITY, 0}, {2047, 0, -INFINITY, 1}};
  cmkd_error err;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_cuda_state s = {.scale = 1};
    memset(g, 0, sizeof g), memset(narrow, 0, sizeof narrow);
    if (cases[i].wide)
      g[cases[i].at] = cases[i].value;
    else
      narrow[cases[i].at] = cmkd_float_to_half(cases[i].value);
    void *d = gpu_put(&s, sizeof s);
    cmkd_cuda_update u = {.count = N,
                          .w = gpu_put(g, sizeof g),
                          .m = gpu_put(g, sizeof g),
                          .grad = gpu_put(g, sizeof g),
                          .grad16 = gpu_put(narrow, sizeof narrow),
                          .from16 = gpu_put(from16, sizeof from16),
                          .copy_dtype = CMKD_F16};
    assert_ok(GPU(cmkd_cuda_check_gradients)(&u, d, NULL, &err));
    gpu_get(&s, d, sizeof s);
    assert_int_equal(s.overflow, cases[i].seen);
    gpu_clear();
  }
}

/* The loss scale: halved by an overflow, doubled after enough good steps; a halted run writes no result. */
static void the_end_of_a_step_moves_the_scale(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_error err;
  cmkd_step_result result[3];
  cmkd_cuda_state s = {.scale = 1024, .overflow = 1, .good = 7, .top1 = 3, .loss = {.loss = 2, .bad_row = -1}};
  void *d = gpu_put(&s, sizeof s), *r = gpu_buffer(sizeof result);
  assert_ok(GPU(cmkd_cuda_end)(d, r, 5, 1, NULL, &err));
  gpu_get(&s, d, sizeof s);
  assert_true(s.scale == 512 && s.good == 0 && s.input == 1 && s.output == 1 && !s.halted);
  s.overflow = 0, s.good = CMKD_CUDA_SCALE_STEPS - 1;
  assert_ok(gpu->put(d, &s, sizeof s, &err));
  assert_ok(GPU(cmkd_cuda_end)(d, r, 5, 1, NULL, &err));
  gpu_get(&s, d, sizeof s);
  assert_true(s.scale == 1024 && s.good == 0);
  s.loss.bad_row = 2, s.output = 1;
  assert_ok(gpu->put(d, &s, sizeof s, &err));
  for (int i = 0; i < 2; i++)
    assert_ok(GPU(cmkd_cuda_end)(d, r, 5, 1, NULL, &err));
  gpu_get(result, r, sizeof result);
  assert_int_equal(result[0].count, 5);
  assert_int_equal(result[0].top1, 3);
  assert_true(result[0].loss.loss == 2);
  assert_int_equal(result[1].loss.bad_row, 2);
  assert_int_equal(result[1].count, 5);
  assert_int_equal(result[2].count, -1);
  gpu_clear();
}

static void hits_are_counted(void **state) {
  (void)state;
  NEED_GPU();
  enum { B = 21, C = 70 };
  static float z[B * C];
  int32_t labels[B];
  int top1 = 0, top5 = 0;
  cmkd_error err;
  cmkd_rng rng = cmkd_rng_start(8, CMKD_STREAM_TEST, 1);
  for (int i = 0; i < B; i++) {
    labels[i] = (int32_t)cmkd_rng_below(&rng, C);
    for (int c = 0; c < C; c++)
      z[i * C + c] = (float)cmkd_rng_below(&rng, 30); /* ties */
    int better = 0;
    for (int c = 0; c < C; c++)
      better += z[i * C + c] > z[i * C + labels[i]] || (z[i * C + c] == z[i * C + labels[i]] && c < labels[i]);
    top1 += better < 1, top5 += better < 5;
  }
  assert_true(top5 > top1 && top1 > 0);
  for (int order = 0; order < ORDERS; order++) {
    cmkd_cuda_state s = {.loss = {.bad_row = order ? -1 : 4}};
    set_order(order, 4);
    void *d = gpu_put(&s, sizeof s);
    assert_ok(GPU(cmkd_cuda_count_correct)(gpu_put(z, sizeof z), gpu_put(labels, sizeof labels), B, C, d, NULL, &err));
    gpu_get(&s, d, sizeof s);
    assert_int_equal(s.top1, top1);
    assert_int_equal(s.top5, top5);
    assert_int_equal(s.skip, order == 0);
    gpu_clear();
  }
}

static void arguments_are_checked(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_error err;
  float x[4] = {0};
  uint32_t row = 0;
  uint8_t byte = 0;
  assert_int_equal(gpu->agreement_scratch(1, 1), 0);
  assert_int_equal(gpu->agreement_scratch(1, 131073), 0);
  const cmkd_cuda_agreement_batch doubles = {1, 4, x, x, CMKD_F64, CMKD_F32, 2};
  const cmkd_gather none = {CMKD_AUGMENT_NONE, &byte, &row, NULL, 0, 1, 1, 1},
                    grey = {CMKD_AUGMENT_NONE, &byte, &row, NULL, 1, 1, 1, 1},
                    coloured = {CMKD_AUGMENT_NONE, &byte, &row, NULL, 1, 1, 1, 3};
  const cmkd_cuda_stored_rows nowhere = {CMKD_F16, 4, NULL, NULL, NULL}, no_ranges = {CMKD_U8, 4, &byte, NULL, NULL};
  assert_int_equal(gpu->agreement_add(&doubles, x, (cmkd_agreement *)x, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(gpu->augment_bytes(&none, &byte, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(gpu->augment(&coloured, x, 2, CMKD_F32, x, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(gpu->augment(&grey, x, 1, CMKD_I32, x, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(gpu->rows(&nowhere, &row, 1, x, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(gpu->rows(&no_ranges, &row, 1, x, NULL, &err), CMKD_ERR_VALUE);
  cmkd_cuda_update u = {.count = 5, .w = x, .m = x, .grad = x};
  assert_int_equal(GPU(cmkd_cuda_sgd)(&u, (cmkd_cuda_state *)x, NULL, &err), CMKD_ERR_VALUE);
}

int main(void) {
  struct CMUnitTest tests[] = {
      cmocka_unit_test(agreement_is_the_reference),
      cmocka_unit_test(agreement_of_rows_in_device_memory),
      cmocka_unit_test(images_are_the_same_bytes),
      cmocka_unit_test(cache_rows_decode_as_on_the_cpu),
      cmocka_unit_test(sgd_is_the_reference),
      cmocka_unit_test(overflow_is_seen),
      cmocka_unit_test(the_end_of_a_step_moves_the_scale),
      cmocka_unit_test(hits_are_counted),
      cmocka_unit_test(arguments_are_checked),
  };
  return RUN_TESTS(tests);
}
