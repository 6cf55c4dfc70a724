/* safetensors in and out: hostile headers, mutations, round trips, the shared teachers. PyTorch's containers:
 * tests/test_torch_file.c. */
#include "tests/support.h"
#include "cmkd/weights.h"
#include "base/file.h"
#include "base/half.h"
#include "base/rng.h"
#include <math.h>

/* A file of the given header text and `bytes` bytes of data (0, 1, 2, ...); parses it. */
static cmkd_status parse_text(const char *header, size_t bytes, cmkd_weights **out, cmkd_error *err) {
  size_t length = strlen(header);
  uint8_t *file = malloc(8 + length + bytes);
  for (int i = 0; i < 8; i++)
    file[i] = (uint8_t)((uint64_t)length >> 8 * i);
  memcpy(file + 8, header, length);
  for (size_t i = 0; i < bytes; i++)
    file[8 + length + i] = (uint8_t)i;
  cmkd_status status = cmkd_weights_parse(file, 8 + length + bytes, "t.safetensors", out, err);
  free(file);
  return status;
}

static void reads_by_hand(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_weights *w;
  assert_ok(parse_text("{\"__metadata__\":{\"arch\":\"resnet20\",\"x\":\"\"},\"b\":{\"dtype\":\"U8\",\"shape\":[3],"
                       "\"data_offsets\":[8,11]},"
                       "\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},\"e\":{\"dtype\":\"F16\","
                       "\"shape\":[4,0],\"data_offsets\":[11,11]}}   ",
                       11, &w, &err));
  assert_int_equal(w->count, 3);
  assert_string_equal(w->tensors[0].name, "b");
  assert_string_equal(cmkd_weights_meta(w, "arch"), "resnet20");
  assert_string_equal(cmkd_weights_meta(w, "x"), "");
  assert_null(cmkd_weights_meta(w, "y"));
  assert_null(cmkd_weights_find(w, "c"));
  const cmkd_tensor *a = cmkd_weights_find(w, "a"), *b = cmkd_weights_find(w, "b");
  assert_int_equal(a->dims, 2);
  assert_int_equal(a->count, 2);
  assert_int_equal((uintptr_t)a->data % 8, 0);
  assert_memory_equal(a->data, ((uint8_t[]){0, 1, 2, 3, 4, 5, 6, 7}), 8);
  float f[3];
  cmkd_tensor_to_float(b, f);
  assert_true(f[0] == 8 && f[1] == 9 && f[2] == 10);
  assert_int_equal(cmkd_weights_find(w, "e")->count, 0);
  assert_int_equal(strlen(w->sha256), 64);
  cmkd_weights_free(w);
  cmkd_weights_free(NULL);
}

static void refuses_bad_headers(void **state) {
  (void)state;
  static const struct {
    const char *header;
    size_t bytes;
    const char *says;
  } cases[] = {{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[1]"
                ",\"data_offsets\":[4,8]}}",
                8, "duplicate"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1]"
                ",\"data_offsets\":[2,6]}}",
                6, "overlaps"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1]"
                ",\"data_offsets\":[5,9]}}",
                9, "hole"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}", 5, "hole"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "too many"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "truncated"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "shape and dtype need 8"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "backwards"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "backwards"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "pair"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", 4, "pair"},
               {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "F8_E4M3"},
               {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "no dtype"},
               {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1, "negative"},
               {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "absurd"},
               {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "absurd"},
               {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, "whole numbers"},
               {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, "at most 8"},
               {"{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, "no shape"},
               {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":1}}", 1, "more fields"},
               {"{\"a\":7}", 0, "not an object"},
               {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "empty"},
               {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
               {"{\"__metadata__\":[]}", 0, "not an object"},
               {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} x", 1, "damaged"},
               {"{\"a\":", 0, "damaged"},
               {"[1]", 0, "not a weight file"},
               {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "damaged"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_error err = {0};
    cmkd_weights *w = (cmkd_weights *)1;
    cmkd_status status = parse_text(cases[i].header, cases[i].bytes, &w, &err);
    if (status == CMKD_OK || w || !strstr(err.message, cases[i].says) || !strstr(err.message, "t.safetensors"))
      fail_msg("%s: status %d, '%s'", cases[i].header, status, err.message);
  }
  cmkd_error err = {0};
  cmkd_weights *w;
  assert_int_equal(cmkd_weights_parse("", 0, "empty", &w, &err), CMKD_ERR_FORMAT);
  assert_int_equal(cmkd_weights_parse("\x02\0\0\0\0\0\0\0{", 9, "cut", &w, &err), CMKD_ERR_FORMAT);
  assert_int_equal(cmkd_weights_parse("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "huge", &w, &err), CMKD_ERR_FORMAT);
  assert_ok(cmkd_weights_parse("\x02\0\0\0\0\0\0\0{}", 10, "none", &w, &err));
  assert_int_equal(w->count, 0);
  cmkd_weights_free(w);
}

/* Every dtype, odd sizes, a scalar, an empty tensor, UTF-8 names. */
static void write_sample(const char *path) {
  static float f[5] = {1.5f, -0.0f, NAN, INFINITY, 1e-40f};
  static int64_t steps = 391;
  static uint8_t bytes[24] = {1, 2, 3, 0, 5, 6, 7, 8, 9};
  cmkd_tensor t[16];
  memset(t, 0, sizeof t);
  int n = 0;
  t[n++] = (cmkd_tensor){"layer1.0.conv1.weight", CMKD_F32, 3, {1, 5, 1}, 5, f};
  t[n++] = (cmkd_tensor){"bn1.num_batches_tracked", CMKD_I64, 0, {0}, 1, &steps};
  t[n++] = (cmkd_tensor){"none", CMKD_F32, 2, {0, 7}, 0, NULL};
  t[n++] = (cmkd_tensor){"\xc3\xa9t\xc3\xa9", CMKD_U8, 1, {3}, 3, bytes};
  static char names[CMKD_U64 + 1][8];
  for (int d = CMKD_F32; d <= CMKD_U64; d++) {
    snprintf(names[d], 8, "d%s", cmkd_dtype_name((cmkd_dtype)d));
    t[n++] = (cmkd_tensor){names[d], (cmkd_dtype)d, 1, {3}, 3, bytes};
    if (n == 16) break;
  }
  cmkd_error err = {0};
  static const char *keys[] = {"arch", "note"}, *values[] = {"resnet20", "a \"quoted\" \n line"};
  assert_ok(cmkd_weights_write(path, t, n, keys, values, 2, &err));
}

static void round_trips(void **state) {
  (void)state;
  cmkd_error err = {0};
  char *path = cmkd_path_join(scratch_dir(), "w.safetensors"), *again = cmkd_path_join(scratch_dir(), "v.safetensors");
  write_sample(path);
  cmkd_weights *w;
  assert_ok(cmkd_weights_read(path, &w, &err));
  assert_string_equal(w->path, path);
  assert_string_equal(w->tensors[0].name, "layer1.0.conv1.weight"); /* header order is the order given */
  assert_string_equal(w->tensors[1].name, "bn1.num_batches_tracked");
  assert_string_equal(cmkd_weights_meta(w, "note"), "a \"quoted\" \n line");
  const float *f = cmkd_weights_find(w, "layer1.0.conv1.weight")->data;
  assert_true(f[0] == 1.5f && signbit(f[1]) && isnan(f[2]) && isinf(f[3]) && f[4] == 1e-40f);
  assert_int_equal(*(const int64_t *)cmkd_weights_find(w, "bn1.num_batches_tracked")->data, 391);
  double d[3];
  cmkd_tensor_to_double(cmkd_weights_find(w, "dBOOL"), d);
  assert_true(d[0] == 1 && d[1] == 1 && d[2] == 1);
  cmkd_tensor_to_double(cmkd_weights_find(w, "dI32"), d);
  assert_true(d[0] == 0x00030201 && d[1] == 0x08070605 && d[2] == 9);
  cmkd_tensor_to_double(cmkd_weights_find(w, "dBF16"), d);
  assert_true(d[0] == cmkd_bf16_to_float(0x0201));
  /* what was read is written back to the same bytes */
  assert_ok(cmkd_weights_write(again, w->tensors, w->count, (const char *const *)w->meta_keys,
                               (const char *const *)w->meta_values, w->meta_count, &err));
  uint8_t *a, *b;
  size_t na, nb;
  assert_ok(cmkd_file_read(path, 1 << 20, &a, &na, &err));
  assert_ok(cmkd_file_read(again, 1 << 20, &b, &nb, &err));
  assert_int_equal(na, nb);
  assert_memory_equal(a, b, na);
  assert_int_equal(a[0] % 8, 0); /* aligned header */
  free(a);
  free(b);
  cmkd_weights_free(w);
  free(path);
  free(again);
}

/* The bytes as somebody else reads them: the format's rules spelled out in Python, and the safetensors package where it
 * is installed. */
static void python_agrees(void **state) {
  (void)state;
  static const char *script =
      "import json, struct, sys\n"
      "b = open(sys.argv[1], 'rb').read(); n, = struct.unpack('<Q', b[:8]); h = json.loads(b[8:8 + n]); data = b[8 + "
      "n:]\n"
      "assert n % 8 == 0 and h.pop('__metadata__') == {'arch': 'resnet20', 'note': 'a \"quoted\" \\n line'}\n"
      "size = dict(F32=4, F64=8, F16=2, BF16=2, I64=8, I32=4, U8=1, BOOL=1, I8=1, I16=2, U16=2, U32=4, U64=8); at = 0\n"
      "for t in sorted(h.values(), key=lambda t: (t['data_offsets'])):\n"
      "  count = 1\n"
      "  for d in t['shape']: count *= d\n"
      "  begin, end = t['data_offsets']; assert begin == at and end - begin == count * size[t['dtype']] and begin % "
      "size[t['dtype']] == 0; at = end\n"
      "assert at == len(data)\n"
      "t = h['bn1.num_batches_tracked']; assert t['shape'] == [] and struct.unpack('<q', "
      "data[t['data_offsets'][0]:][:8])[0] == 391\n"
      "t = h['layer1.0.conv1.weight']; assert t['shape'] == [1, 5, 1] and struct.unpack('<f', "
      "data[t['data_offsets'][0]:][:4])[0] == 1.5\n"
      "try: from safetensors import deserialize\n"
      "except ImportError: sys.exit()\n"
      "assert dict(deserialize(b))['bn1.num_batches_tracked']['data'] == struct.pack('<q', 391)\n";
  cmkd_error err = {0};
  const char *out, *dir = scratch_dir();
  char *path = cmkd_path_join(dir, "p.safetensors"), *program = cmkd_path_join(dir, "p.py");
  if (run_command(NULL, "python3 -c 1") != 0) {
    printf("SKIP: python3 is not installed\n");
    free(path);
    free(program);
    skip();
  }
  write_sample(path);
  assert_ok(cmkd_file_write(program, &(cmkd_piece){script, strlen(script)}, 1, &err));
  if (run_command(&out, "python3 '%s' '%s'", program, path) != 0) fail_msg("%s", out);
  free(path);
  free(program);
}

static void writer_refuses(void **state) {
  (void)state;
  cmkd_error err = {0};
  float f = 1;
  char *path = cmkd_path_join(scratch_dir(), "bad.safetensors");
  cmkd_tensor good = {"a", CMKD_F32, 1, {1}, 1, &f}, twice[] = {good, good}, wrong = good, meta = good, latin = good,
              many = good;
  wrong.count = 2;
  meta.name = "__metadata__";
  latin.name = "\xe9";
  many.dims = 9;
  assert_int_equal(cmkd_weights_write(path, twice, 2, NULL, NULL, 0, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_weights_write(path, &wrong, 1, NULL, NULL, 0, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_weights_write(path, &meta, 1, NULL, NULL, 0, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_weights_write(path, &latin, 1, NULL, NULL, 0, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_weights_write(path, &many, 1, NULL, NULL, 0, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_weights_write("/nonexistent/x.safetensors", &good, 1, NULL, NULL, 0, &err), CMKD_ERR_IO);
  assert_non_null(strstr(err.message, "/nonexistent/x.safetensors"));
  assert_false(cmkd_file_exists(path));
  free(path);
}

/* Whatever is done to a small file, the reader answers, and never out of bounds (AddressSanitizer watches). */
static void survives_mutations(void **state) {
  (void)state;
  cmkd_error err = {0};
  char *path = cmkd_path_join(scratch_dir(), "m.safetensors");
  uint8_t *file;
  size_t size;
  write_sample(path);
  assert_ok(cmkd_file_read(path, 1 << 20, &file, &size, &err));
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, 0);
  int refused = 0;
  for (int i = 0; i < 3000; i++) {
    size_t n = i < 1000 ? cmkd_rng_below(&rng, (uint32_t)size) : size;
    uint8_t *copy = malloc(n + 1); /* of exactly this size, so that a read past the end is seen */
    memcpy(copy, file, n);
    if (i >= 1000)
      for (uint32_t k = 0; k <= cmkd_rng_below(&rng, 3); k++)
        copy[cmkd_rng_below(&rng, (uint32_t)n)] = (uint8_t)cmkd_rng_u32(&rng);
    cmkd_weights *w;
    err.message[0] = 0;
    if (cmkd_weights_parse(copy, n, "mutant", &w, &err) == CMKD_OK)
      cmkd_weights_free(w);
    else {
      refused++;
      assert_non_null(strstr(err.message, "mutant"));
      assert_null(w);
    }
    assert_true(i >= 1000 || refused == i + 1); /* every truncation is refused */
    free(copy);
  }
  assert_true(refused > 1500);
  free(file);
  free(path);
}

static void files_on_disk(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_weights *w;
  const char *dir = scratch_dir();
  assert_int_equal(cmkd_weights_read(dir, &w, &err), CMKD_ERR_IO);
  assert_non_null(strstr(err.message, dir));
  assert_int_equal(cmkd_weights_read("/nonexistent.safetensors", &w, &err), CMKD_ERR_IO);
  assert_null(w);
  assert_int_equal(cmkd_weights_read("/dev/null", &w, &err), CMKD_ERR_IO);
}

static void shared_teachers(void **state) {
  (void)state;
  static const struct {
    const char *file, *arch;
  } teachers[] = {{"resnet20-cifar10", "resnet20"},
                  {"resnet20-cifar100", "resnet20"},
                  {"resnet20-padshortcut-cifar10", "resnet20_pad"},
                  {"resnet32-cifar100", "resnet32"},
                  {"resnet44-cifar100", "resnet44"},
                  {"resnet56-cifar100", "resnet56"},
                  {"resnet56-padshortcut-cifar10", "resnet56_pad"}};
  for (size_t i = 0; i < sizeof teachers / sizeof *teachers; i++) {
    cmkd_error err = {0};
    cmkd_weights *w;
    char name[128];
    snprintf(name, sizeof name, "teachers/%s.safetensors", teachers[i].file);
    const char *path = shared_path(name);
    if (!path) skip();
    assert_ok(cmkd_weights_read(path, &w, &err));
    assert_true(w->count > 90 && w->meta_count > 2);
    int64_t numbers = 0;
    for (int t = 0; t < w->count; t++) {
      float *f = malloc(((size_t)w->tensors[t].count + 1) * sizeof *f);
      cmkd_tensor_to_float(&w->tensors[t], f);
      for (int64_t k = 0; k < w->tensors[t].count; k++)
        assert_true(isfinite(f[k]));
      if (strstr(w->tensors[t].name, "running_var"))
        for (int64_t k = 0; k < w->tensors[t].count; k++)
          assert_true(f[k] >= 0);
      numbers += w->tensors[t].count;
      free(f);
    }
    assert_in_range(numbers, 260000, 900000);
    const cmkd_tensor *conv = cmkd_weights_find(w, "conv1.weight");
    assert_non_null(conv);
    assert_int_equal(conv->count, 16 * 3 * 9);
    cmkd_weights_free(w);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(reads_by_hand),  cmocka_unit_test(refuses_bad_headers),
                                     cmocka_unit_test(round_trips),    cmocka_unit_test(python_agrees),
                                     cmocka_unit_test(writer_refuses), cmocka_unit_test(survives_mutations),
                                     cmocka_unit_test(files_on_disk),  cmocka_unit_test(shared_teachers)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
