/* .npy in and out, against hand-written headers and, where it is installed, NumPy. */
#include "tests/support.h"
#include "formats/npy.h"
#include "base/file.h"
#include "base/rng.h"
#include <unistd.h>

static cmkd_status parse_text(const char *dict, size_t bytes, cmkd_npy **out, cmkd_error *err) {
  size_t n = strlen(dict);
  uint8_t *file = calloc(1, 10 + n + bytes);
  memcpy(file, "\x93NUMPY\1", 8);
  file[8] = (uint8_t)n;
  file[9] = (uint8_t)(n >> 8);
  memcpy(file + 10, dict, n);
  for (size_t i = 0; i < bytes; i++)
    file[10 + n + i] = (uint8_t)i;
  cmkd_status status = cmkd_npy_parse(file, 10 + n + bytes, "t.npy", out, err);
  free(file);
  return status;
}

static void headers(void **state) {
  (void)state;
  static const struct {
    const char *dict;
    size_t bytes;
    int dims;
    int64_t count;
    const char *says;
  } cases[] = {{"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n", 24, 2, 6, NULL},
               {"{\"shape\":(4,),\"fortran_order\":True,\"descr\":\"<u2\"}", 8, 1, 4, NULL},
               {"{'descr': '|b1', 'fortran_order': False, 'shape': ()}", 1, 0, 1, NULL},
               {"{'descr': '<u1', 'fortran_order': False, 'shape': (0, 7)}", 0, 2, 0, NULL},
               {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", 24, 0, 0, "Fortran"},
               {"{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", 8, 0, 0, "'>f4'"},
               {"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", 8, 0, 0, "'|O'"},
               {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", 8, 0, 0, "structured"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", 8, 0, 0, "header"},
               {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", 8, 0, 0, "header"},
               {"{'descr': '<f4', 'fortran_order': False}", 8, 0, 0, "header"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", 8, 0, 0, "header"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", 8, 0, 0, "header"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (2)}", 8, 0, 0, "header"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (2", 8, 0, 0, "header"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", 4, 0, 0, "header"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 4, 0, 0, "header"},
               {"{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296,4294967296)}", 8, 0, 0, "absurd"},
               {"{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", 15, 0, 0, "truncated"},
               {"{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", 17, 0, 0, "oversized"},
               {"", 0, 0, 0, "header"},
               {"{", 0, 0, 0, "header"},
               {"{'", 0, 0, 0, "header"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_error err = {0};
    cmkd_npy *array;
    cmkd_status status = parse_text(cases[i].dict, cases[i].bytes, &array, &err);
    if (cases[i].says) {
      if (status == CMKD_OK || array || !strstr(err.message, cases[i].says))
        fail_msg("%s: %d '%s'", cases[i].dict, status, err.message);
    } else {
      if (status != CMKD_OK) fail_msg("%s: %s", cases[i].dict, err.message);
      assert_int_equal(array->dims, cases[i].dims);
      assert_int_equal(array->count, cases[i].count);
      if (cases[i].bytes > 4) assert_int_equal(((uint8_t *)array->data)[4], 4);
      cmkd_npy_free(array);
    }
  }
  cmkd_error err = {0};
  cmkd_npy *array;
  assert_int_equal(cmkd_npy_parse((const uint8_t *)"\x93NUMPY\2\0\xff\xff", 10, "t", &array, &err), CMKD_ERR_FORMAT);
  assert_int_equal(cmkd_npy_parse((const uint8_t *)"\x93NUMPY\2\0\xff\xff\xff\xff", 12, "t", &array, &err),
                   CMKD_ERR_FORMAT);
  assert_int_equal(cmkd_npy_parse((const uint8_t *)"\x93NUMPY\7\0\xff\xff\xff\xff", 12, "t", &array, &err),
                   CMKD_ERR_UNSUPPORTED);
  assert_int_equal(cmkd_npy_parse((const uint8_t *)"", 0, "t", &array, &err), CMKD_ERR_FORMAT);
  cmkd_npy_free(NULL);
}

static void streams(void **state) {
  (void)state;
  cmkd_error err = {0};
  char *path = cmkd_path_join(scratch_dir(), "x.npy"), *temporary = cmkd_format("%s.tmp", path);
  float rows[3 * 4];
  int64_t shape[] = {3, 1, 4};
  for (int i = 0; i < 12; i++)
    rows[i] = (float)i * 0.25f - 1;
  cmkd_npy_writer *w;
  assert_ok(cmkd_npy_begin(path, CMKD_F32, 3, shape, &w, &err));
  for (int i = 0; i < 3; i++)
    assert_ok(cmkd_npy_append(w, rows + 4 * i, 4, &err));
  assert_false(cmkd_file_exists(path));
  assert_ok(cmkd_npy_end(w, &err));
  assert_false(cmkd_file_exists(temporary));
  cmkd_npy *array;
  assert_ok(cmkd_npy_read(path, 1 << 20, &array, &err));
  assert_int_equal(array->dims, 3);
  assert_memory_equal(array->shape, shape, sizeof shape);
  assert_memory_equal(array->data, rows, sizeof rows);
  cmkd_npy_free(array);
  /* too few, too many, given up: nothing under the final name, the old file stands */
  assert_ok(cmkd_npy_begin(path, CMKD_F32, 3, shape, &w, &err));
  assert_ok(cmkd_npy_append(w, rows, 4, &err));
  assert_int_equal(cmkd_npy_end(w, &err), CMKD_ERR_USAGE);
  assert_ok(cmkd_npy_begin(path, CMKD_F32, 3, shape, &w, &err));
  assert_int_equal(cmkd_npy_append(w, rows, 13, &err), CMKD_ERR_USAGE);
  cmkd_npy_abort(w);
  assert_false(cmkd_file_exists(temporary));
  assert_ok(cmkd_npy_read(path, 1 << 20, &array, &err));
  cmkd_npy_free(array);
  /* a dead writer's temporary is replaced */
  assert_ok(cmkd_file_write(temporary, &(cmkd_piece){"old", 3}, 1, &err));
  assert_ok(cmkd_npy_begin(path, CMKD_I64, 0, NULL, &w, &err));
  int64_t one = -5;
  assert_ok(cmkd_npy_append(w, &one, 1, &err));
  assert_ok(cmkd_npy_end(w, &err));
  assert_ok(cmkd_npy_read(path, 1 << 20, &array, &err));
  assert_int_equal(*(int64_t *)array->data, -5);
  cmkd_npy_free(array);
  assert_int_equal(cmkd_npy_begin("/nonexistent/x.npy", CMKD_F32, 3, shape, &w, &err), CMKD_ERR_IO);
  assert_int_equal(cmkd_npy_begin(path, CMKD_BF16, 3, shape, &w, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_npy_begin(scratch_dir(), CMKD_F32, 3, shape, &w, &err), CMKD_ERR_IO);
  if (access("/dev/full", W_OK) == 0)
    assert_int_equal(cmkd_npy_begin("/dev/full", CMKD_F32, 3, shape, &w, &err), CMKD_ERR_IO);
  free(temporary);
  free(path);
}

static void survives_mutations(void **state) {
  (void)state;
  static const char dict[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n";
  uint8_t file[10 + sizeof dict - 1 + 24] = "\x93NUMPY\1";
  file[8] = sizeof dict - 1;
  memcpy(file + 10, dict, sizeof dict - 1);
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 0);
  for (int i = 0; i < 5000; i++) {
    cmkd_error err;
    cmkd_npy *array;
    size_t n = i < 1000 ? cmkd_rng_below(&rng, sizeof file) : sizeof file;
    uint8_t *copy = malloc(n + 1);
    memcpy(copy, file, n);
    if (i >= 1000) copy[cmkd_rng_below(&rng, (uint32_t)n)] = (uint8_t)cmkd_rng_u32(&rng);
    if (cmkd_npy_parse(copy, n, "mutant", &array, &err) == CMKD_OK) {
      assert_true(i >= 1000);
      cmkd_npy_free(array);
    }
    free(copy);
  }
}

static void numpy_reads_it(void **state) {
  (void)state;
  cmkd_error err = {0};
  const char *out, *python = python_with("numpy");
  if (!python) skip();
  char *path = cmkd_path_join(scratch_dir(), "x.npy");
  const float rows[] = {-1, -0.75f, 2.5f, 0.25f, 0.5f, 3};
  const int64_t shape[] = {3, 1, 2};
  cmkd_npy_writer *w;
  assert_ok(cmkd_npy_begin(path, CMKD_F32, 3, shape, &w, &err));
  assert_ok(cmkd_npy_append(w, rows, 6, &err));
  assert_ok(cmkd_npy_end(w, &err));
  const char *script = "import sys, numpy as n; x = n.load(sys.argv[1]); print(x.dtype, x.shape, x.ravel().tolist())";
  if (run_command(&out, "'%s' -c '%s' '%s'", python, script, path) != 0) fail_msg("%s", out);
  assert_string_equal(out, "float32 (3, 1, 2) [-1.0, -0.75, 2.5, 0.25, 0.5, 3.0]\n");
  free(path);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(headers), cmocka_unit_test(streams),
                                     cmocka_unit_test(numpy_reads_it), cmocka_unit_test(survives_mutations)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
