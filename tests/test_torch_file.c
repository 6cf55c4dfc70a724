/* PyTorch's containers: small files of tests/seeds/weights (tests/seeds/make_weights.py wrote them), the shared
 * checkpoints, and damage. */
#include "tests/support.h"
#include "cmkd/weights.h"
#include "base/file.h"
#include "base/rng.h"

static char *seed_path(const char *name) {
  char *path = cmkd_format("tests/seeds/weights/%s", name);
  assert_true(cmkd_file_exists(path)); /* tests run in the repository root */
  return path;
}

static cmkd_weights *read_seed(const char *name) {
  cmkd_error err = {0};
  cmkd_weights *w;
  char *path = seed_path(name);
  assert_ok(cmkd_weights_read(path, &w, &err));
  free(path);
  return w;
}

static void check(const cmkd_weights *w, const char *name, cmkd_dtype dtype, int dims, const int64_t *shape,
                  const double *values) {
  const cmkd_tensor *t = cmkd_weights_find(w, name);
  if (!t) fail_msg("%s: no %s", w->path, name);
  double got[64];
  int64_t count = 1;
  assert_int_equal(t->dtype, dtype);
  assert_int_equal(t->dims, dims);
  for (int d = 0; d < dims; d++) {
    assert_int_equal(t->shape[d], shape[d]);
    count *= shape[d];
  }
  assert_int_equal(t->count, count);
  assert_int_equal((uintptr_t)t->data % 8, 0);
  cmkd_tensor_to_double(t, got);
  for (int64_t i = 0; i < count; i++)
    if (got[i] != values[i]) fail_msg("%s: %s[%d] is %g, not %g", w->path, name, (int)i, got[i], values[i]);
}
#define SHAPE(...) \
  (const int64_t[]) { __VA_ARGS__ }
#define VALUES(...) \
  (const double[]) { __VA_ARGS__ }

static void every_dtype(void **state) {
  (void)state;
  static const char *const files[] = {"bare.pth", "protocol4.pt", "deflated.pth", "streamed.pth", "zip64.pth"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    cmkd_weights *w = read_seed(files[i]);
    assert_int_equal(w->count, 12);
    assert_string_equal(w->tensors[0].name, "f");
    check(w, "f", CMKD_F32, 2, SHAPE(2, 3), VALUES(0, .25, .5, .75, 1, 1.25));
    check(w, "d", CMKD_F64, 1, SHAPE(2), VALUES(1e-300, -2));
    check(w, "h", CMKD_F16, 1, SHAPE(2), VALUES(1.5, -2.25));
    check(w, "b", CMKD_BF16, 1, SHAPE(2), VALUES(3, -.5));
    check(w, "l", CMKD_I64, 0, NULL, VALUES(391));
    check(w, "i", CMKD_I32, 1, SHAPE(2), VALUES(-7, 8));
    check(w, "s", CMKD_I16, 1, SHAPE(1), VALUES(-9));
    check(w, "c", CMKD_I8, 1, SHAPE(2), VALUES(-1, 2));
    check(w, "u", CMKD_U8, 1, SHAPE(1), VALUES(200));
    check(w, "o", CMKD_BOOL, 1, SHAPE(2), VALUES(1, 0));
    check(w, "e", CMKD_F32, 2, SHAPE(0, 3), NULL);
    check(w, "p", CMKD_F32, 1, SHAPE(2), VALUES(1, 1));
    cmkd_weights_free(w);
  }
}

static void strides(void **state) {
  (void)state;
  static const char *const files[] = {"strided.pth", "strided-legacy.pth"};
  for (int i = 0; i < 2; i++) {
    cmkd_weights *w = read_seed(files[i]);
    double whole[24], transposed[24];
    for (int k = 0; k < 24; k++) {
      whole[k] = k;
      transposed[k] = k % 4 * 6 + k / 4;
    }
    assert_int_equal(w->count, 5);
    check(w, "whole", CMKD_F32, 2, SHAPE(4, 6), whole);
    check(w, "again", CMKD_F32, 2, SHAPE(4, 6), whole);
    check(w, "transposed", CMKD_F32, 2, SHAPE(6, 4), transposed);
    check(w, "slice", CMKD_F32, 2, SHAPE(2, 3), VALUES(6, 8, 10, 12, 14, 16));
    check(w, "row", CMKD_F32, 1, SHAPE(6), VALUES(12, 13, 14, 15, 16, 17));
    cmkd_weights_free(w);
  }
}

/* A training checkpoint: optimizer, counters, a lone tensor beside `state_dict`, and `module.` before every name. */
static void wrapped(void **state) {
  (void)state;
  static const char *const files[] = {"wrapped.pth", "wrapped-legacy.th"};
  for (int i = 0; i < 2; i++) {
    cmkd_weights *w = read_seed(files[i]);
    assert_int_equal(w->count, 7);
    check(w, "0.weight", CMKD_F32, 2, SHAPE(2, 2), VALUES(0, 1, 2, 3));
    check(w, "0.bias", CMKD_F32, 1, SHAPE(2), VALUES(10, 11));
    check(w, "1.weight", CMKD_F32, 1, SHAPE(2), VALUES(20, 21));
    check(w, "1.num_batches_tracked", CMKD_I64, 0, NULL, VALUES(1));
    cmkd_weights_free(w);
  }
}

static void refuses_by_name(void **state) {
  (void)state;
  static const struct {
    const char *file, *says;
  } cases[] = {{"evil.pth", "posix.system"},
               {"evil.pkl", "posix.system"},
               {"module.pth", "torch.nn.modules.container.Sequential"},
               {"expanded.pth", "more numbers than its storage"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_error err = {0};
    cmkd_weights *w;
    char *path = seed_path(cases[i].file);
    cmkd_status status = cmkd_weights_read(path, &w, &err);
    if (status == CMKD_OK || w || !strstr(err.message, cases[i].says) || !strstr(err.message, path))
      fail_msg("%s: %d '%s'", path, status, err.message);
    free(path);
  }
  assert_false(cmkd_file_exists("executed"));
}

static void shared_checkpoints(void **state) {
  (void)state;
  static const char *const pairs[][2] = {
      {"teachers/resnet20-cifar100.pth", "teachers/resnet20-cifar100.safetensors"},
      {"teachers/resnet20-padshortcut-cifar10.th", "teachers/resnet20-padshortcut-cifar10.safetensors"}};
  for (int i = 0; i < 2; i++) {
    cmkd_error err = {0};
    cmkd_weights *a, *b;
    const char *first = shared_path(pairs[i][0]), *second = shared_path(pairs[i][1]);
    if (!first || !second) skip();
    assert_ok(cmkd_weights_read(first, &a, &err));
    assert_ok(cmkd_weights_read(second, &b, &err));
    assert_int_equal(a->count, b->count);
    for (int t = 0; t < a->count; t++) {
      const cmkd_tensor *x = &a->tensors[t], *y = cmkd_weights_find(b, x->name);
      if (!y) fail_msg("%s is not in the other file", x->name);
      assert_int_equal(x->dtype, y->dtype);
      assert_int_equal(x->dims, y->dims);
      assert_memory_equal(x->shape, y->shape, (size_t)x->dims * sizeof *x->shape);
      assert_memory_equal(x->data, y->data, (size_t)x->count * cmkd_dtype_size(x->dtype));
    }
    cmkd_weights_free(a);
    cmkd_weights_free(b);
  }
}

/* ---- damage ---- */

static cmkd_status parse_copy(const uint8_t *file, size_t size, cmkd_error *err) {
  uint8_t *copy = malloc(size + !size); /* of exactly this size, so that AddressSanitizer sees a read past the end */
  cmkd_weights *w;
  memcpy(copy, file, size);
  err->message[0] = 0;
  cmkd_status status = cmkd_weights_parse(copy, size, "mutant", &w, err);
  if (status == CMKD_OK) {
    for (int i = 0; i < w->count; i++) {
      double *out = malloc(((size_t)w->tensors[i].count + 1) * sizeof *out);
      cmkd_tensor_to_double(&w->tensors[i], out);
      free(out);
    }
    cmkd_weights_free(w);
  } else {
    assert_null(w);
    assert_non_null(strstr(err->message, "mutant"));
  }
  free(copy);
  return status;
}

static void survives_mutations(void **state) {
  (void)state;
  static const char *const files[] = {"bare.pth",  "strided.pth",       "deflated.pth",       "streamed.pth",
                                      "zip64.pth", "wrapped-legacy.th", "strided-legacy.pth", "protocol4.pt"};
  cmkd_rng rng = cmkd_rng_start(3, CMKD_STREAM_TEST, 0);
  cmkd_error err = {0};
  for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
    uint8_t *file;
    size_t size;
    char *path = seed_path(files[f]);
    assert_ok(cmkd_file_read(path, 1 << 20, &file, &size, &err));
    for (size_t n = 0; n < size; n += 1 + size / 400)
      assert_int_not_equal(parse_copy(file, n, &err), CMKD_OK); /* every truncation is refused */
    for (int i = 0; i < 1500; i++) {
      uint8_t *mutant = malloc(size);
      memcpy(mutant, file, size);
      for (uint32_t k = 0, n = 1 + cmkd_rng_below(&rng, 3); k < n; k++)
        mutant[cmkd_rng_below(&rng, (uint32_t)size)] = (uint8_t)cmkd_rng_u32(&rng);
      parse_copy(mutant, size, &err);
      free(mutant);
    }
    free(file);
    free(path);
  }
}

/* The legacy stream with its object replaced: what a forged pickle can claim. */
static uint8_t legacy[1 << 16];
static size_t legacy_size;
static void add(const void *bytes, size_t size) {
  assert_true(legacy_size + size <= sizeof legacy);
  memcpy(legacy + legacy_size, bytes, size);
  legacy_size += size;
}
#define ADD(literal) add(literal, sizeof(literal) - 1)
static void preamble(void) {
  legacy_size = 0;
  ADD("\x80\2\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\2M\xe9\3.\x80\2}(X\r\0\0\0little_endian\x88u.");
}
#define STORAGE(numel) "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpu" numel "NtQ"
#define TENSOR(numel, offset, size, stride) \
  "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE(numel) offset size stride "\x89)tR"
#define TAIL "\x80\2]X\1\0\0\0000a."

static void forged_tensors(void **state) {
  (void)state;
  static const struct {
    const char *object;
    size_t size;
    const char *says;
  } cases[] = {
#define CASE(object, says) {object, sizeof(object) - 1, says}
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "K\2K\2\x86", "K\2K\1\x86") "s.", NULL),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\1", "K\4\x85", "K\1\x85") "s.", "outside"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "K\2K\2\x86", "K\3K\1\x86") "s.", "outside"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "K\4K\2\x86", "K\0K\1\x86") "s.", "more numbers than its storage"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "\x8a\10\0\0\0\0\0\0\0\1K\2\x86", "K\0K\0\x86") "s.",
           "more numbers than its storage"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "\x8a\10\0\0\0\0\0\0\0\20\x8a\10\0\0\0\0\0\0\0\20\x86",
                                      "K\0K\0\x86") "s.",
           "absurd"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "K\2\x85", "\x8a\10\377\377\377\377\377\377\377\177\x85") "s.",
           "outside"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "\x8a\10\377\377\377\377\377\377\377\177", "K\2\x85", "K\1\x85") "s.",
           "outside"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "J\377\377\377\377\x85", "K\1\x85") "s.", "size"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "K\2\x85", "K\2K\2\x86") "s.", "differ in length"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t",
                                      "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t") "s.",
           "9 dimensions"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("K\5", "K\0", "K\2\x85", "K\1\x85") "s.",
           "storage of 4 items where its tensor says 5"),
      CASE("\x80\2}X\1\0\0\0w" TENSOR("\x8a\10\377\377\377\377\377\377\377\177", "K\0", "K\2\x85", "K\1\x85") "s.",
           "storage of 4 items"),
      CASE("\x80\2}(X\1\0\0\0w" TENSOR("K\4", "K\0", "K\2\x85", "K\1\x85") "X\1\0\0\0w" TENSOR("K\4", "K\0", "K\2\x85",
                                                                                               "K\1\x85") "u.",
           "two tensors"),
      CASE("\x80\2}X\0\0\0\0" TENSOR("K\4", "K\0", "K\2\x85", "K\1\x85") "s.", "name is empty"),
      CASE("\x80\2}X\3\0\0\0a\0b" TENSOR("K\4", "K\0", "K\2\x85", "K\1\x85") "s.", "zero byte"),
      CASE("\x80\2}X\1\0\0\0wK\1s.", "no state dict"),
      CASE("\x80\2]K\1a.", "no state dict"),
      CASE("\x80\2}X\1\0\0\0wctorch\nComplexFloatStorage\ns.", "torch.ComplexFloatStorage"),
      CASE("\x80\2}X\1\0\0\0wcbuiltins\neval\ns.", "builtins.eval"),
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_error err = {0};
    preamble();
    add(cases[i].object, cases[i].size);
    ADD(TAIL "\4\0\0\0\0\0\0\0"
             "\0\0\0\0\0\0\200?\0\0\0@\0\0@@");
    cmkd_status status = parse_copy(legacy, legacy_size, &err);
    if (cases[i].says ? status == CMKD_OK || !strstr(err.message, cases[i].says) : status != CMKD_OK)
      fail_msg("case %zu: %d '%s', expected '%s'", i, status, err.message, cases[i].says ? cases[i].says : "success");
  }
}

static void forged_streams(void **state) {
  (void)state;
  static const char object[] = "\x80\2}X\1\0\0\0w" TENSOR("K\4", "K\0", "K\4\x85", "K\1\x85") "s.",
                    data[] = "\4\0\0\0\0\0\0\0"
                             "\0\0\0\0\0\0\200?\0\0\0@\0\0@@";
  static const struct {
    const char *tail;
    size_t size;
    const char *says;
  } cases[] = {{TAIL, sizeof TAIL - 1, NULL},
               {"\x80\2].", 4, "too many"},
               {"\x80\2}.", 4, "no list"},
               {"\x80\2]X\1\0\0\0001a.", 11, "nothing refers to"},
               {"\x80\2](X\1\0\0\0000X\1\0\0\0000e.", 18, "twice the same"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_error err = {0};
    preamble();
    add(object, sizeof object - 1);
    add(cases[i].tail, cases[i].size);
    add(data, sizeof data - 1);
    cmkd_status status = parse_copy(legacy, legacy_size, &err);
    if (cases[i].says ? status == CMKD_OK || !strstr(err.message, cases[i].says) : status != CMKD_OK)
      fail_msg("case %zu: %d '%s'", i, status, err.message);
  }
  cmkd_error err = {0};
  preamble(); /* one byte more, one less */
  add(object, sizeof object - 1);
  ADD(TAIL);
  add(data, sizeof data - 1);
  assert_int_not_equal(parse_copy(legacy, legacy_size - 1, &err), CMKD_OK);
  assert_non_null(strstr(err.message, "truncated"));
  ADD("x");
  assert_int_not_equal(parse_copy(legacy, legacy_size, &err), CMKD_OK);
  assert_non_null(strstr(err.message, "too many"));
  static const char big[] =
      "\x80\2\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\2M\xe9\3.\x80\2}(X\r\0\0\0little_endian\x89u.";
  assert_int_not_equal(parse_copy((const uint8_t *)big, sizeof big - 1, &err), CMKD_OK);
  assert_non_null(strstr(err.message, "byte order"));
  assert_int_not_equal(parse_copy((const uint8_t *)"\x80\2K\1.", 5, &err), CMKD_OK);
  assert_non_null(strstr(err.message, "not one that torch.save wrote"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_dtype),
                                     cmocka_unit_test(strides),
                                     cmocka_unit_test(wrapped),
                                     cmocka_unit_test(refuses_by_name),
                                     cmocka_unit_test(shared_checkpoints),
                                     cmocka_unit_test(survives_mutations),
                                     cmocka_unit_test(forged_tensors),
                                     cmocka_unit_test(forged_streams)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
