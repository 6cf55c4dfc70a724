/* The pickle reader on its own: values, containers, the memo, refusals, and bombs that must stay small. */
#include "tests/support.h"
#include "formats/weights/pickle.h"
#include <sys/resource.h>

static cmkd_status load(const void *bytes, size_t size, cmkd_pickle **out, cmkd_error *err) {
  uint8_t *copy = malloc(size + !size);
  memcpy(copy, bytes, size);
  cmkd_status status = cmkd_pickle_load(copy, size, "p", out, err);
  if (status != CMKD_OK) {
    free(copy);
    return status;
  }
  /* strings point into the bytes: hand over a pickle of the caller's own */
  cmkd_pickle_free(*out);
  free(copy);
  return cmkd_pickle_load(bytes, size, "p", out, err);
}
#define LOAD(literal, out) load(literal, sizeof(literal) - 1, out, &err)
static const cmkd_pk_value *root(const cmkd_pickle *p) { return &p->values[p->root]; }
static const cmkd_pk_value *item(const cmkd_pickle *p, const cmkd_pk_value *v, uint32_t i) {
  return &p->values[v->as.item[i]];
}

static void values(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_pickle *p;
  assert_ok(LOAD("\x80\2(K\7M\1\2J\xff\xff\xff\xff\x8a\3\xff\xff\xff\x8a\0\x8b\2\0\0\0\xff\x7fG?"
                 "\xf8\0\0\0\0\0\0N\x88\x89X\2\0\0\0hiU\1xC\2\0\1)]}t.rest",
                 &p));
  const cmkd_pk_value *t = root(p);
  assert_int_equal(t->kind, CMKD_PK_TUPLE);
  assert_int_equal(t->length, 16);
  static const int64_t integers[] = {7, 513, -1, -1, 0, 32767};
  for (uint32_t i = 0; i < 6; i++) {
    assert_int_equal(item(p, t, i)->kind, CMKD_PK_INT);
    assert_true(item(p, t, i)->as.integer == integers[i]);
  }
  assert_true(item(p, t, 6)->kind == CMKD_PK_FLOAT && item(p, t, 6)->as.real == 1.5);
  assert_int_equal(item(p, t, 7)->kind, CMKD_PK_NONE);
  assert_true(item(p, t, 8)->kind == CMKD_PK_BOOL && item(p, t, 8)->as.integer == 1 && item(p, t, 9)->as.integer == 0);
  assert_true(item(p, t, 10)->kind == CMKD_PK_STRING && item(p, t, 10)->length == 2 &&
              !memcmp(item(p, t, 10)->as.text, "hi", 2));
  assert_int_equal(item(p, t, 12)->kind, CMKD_PK_BYTES);
  assert_true(item(p, t, 13)->kind == CMKD_PK_TUPLE && item(p, t, 13)->length == 0);
  assert_int_equal(item(p, t, 14)->kind, CMKD_PK_LIST);
  assert_int_equal(item(p, t, 15)->kind, CMKD_PK_DICT);
  assert_int_equal(p->used, sizeof "\x80\2(K\7M\1\2J\xff\xff\xff\xff\x8a\3\xff\xff\xff\x8a\0\x8b\2\0\0\0\xff\x7fG?"
                                   "\xf8\0\0\0\0\0\0N\x88\x89X\2\0\0\0hiU\1xC\2\0\1)]}t." -
                                1);
  cmkd_pickle_free(p);
}

static void containers(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_pickle *p;
  /* a dict with a repeated key, a list in it, reached through the memo */
  assert_int_not_equal(LOAD("\x80\2}q\0(X\1\0\0\0aK\1X\1\0\0\0b]q\1(K\5K\6eh\1K\7aX\1\0\0\0aK\2u.", &p),
                       CMKD_OK); /* an odd item */
  assert_ok(LOAD("\x80\2}q\0(X\1\0\0\0aK\1X\1\0\0\0b]q\1(K\5K\6eX\1\0\0\0aK\2u.", &p));
  const cmkd_pk_value *b = cmkd_pickle_get(p, root(p), "b");
  assert_true(cmkd_pickle_get(p, root(p), "a")->as.integer == 2);
  assert_true(b && b->kind == CMKD_PK_LIST && b->length == 2 && item(p, b, 1)->as.integer == 6);
  assert_null(cmkd_pickle_get(p, root(p), "c"));
  assert_null(cmkd_pickle_get(p, b, "a"));
  cmkd_pickle_free(p);
  /* a list that holds itself is only data here */
  assert_ok(LOAD("\x80\2]q\0h\0a.", &p));
  assert_true(item(p, root(p), 0) == root(p));
  cmkd_pickle_free(p);
  /* OrderedDict as Python 2 wrote it; protocol 4's MEMOIZE and STACK_GLOBAL */
  assert_ok(LOAD("\x80\2ccollections\nOrderedDict\n]]X\1\0\0\0kaK\3aa\x85R.", &p));
  assert_true(cmkd_pickle_get(p, root(p), "k")->as.integer == 3);
  cmkd_pickle_free(p);
  assert_int_not_equal(LOAD("\x80\2ccollections\nOrderedDict\n]K\3a\x85R.", &p), CMKD_OK);
  assert_ok(LOAD("\x80\2ccollections\nOrderedDict\n](](X\1\0\0\0kK\3ee\x85R}X\1\0\0\0mK\1sb.", &p));
  assert_true(cmkd_pickle_get(p, root(p), "k")->as.integer == 3);
  cmkd_pickle_free(p);
  assert_ok(LOAD("\x80\4\x95\x20\0\0\0\0\0\0\0\x8c\x0b"
                 "collections\x94\x8c\x0bOrderedDict\x94\x93\x94)R.",
                 &p));
  assert_int_equal(root(p)->kind, CMKD_PK_DICT);
  cmkd_pickle_free(p);
}

static void refusals(void **state) {
  (void)state;
  static const struct {
    const char *bytes;
    size_t size;
    const char *says;
  } cases[] = {
#define CASE(bytes, says) {bytes, sizeof(bytes) - 1, says}
      CASE("\x80\2cposix\nsystem\nX\2\0\0\0ls\x85R.", "posix.system"),
      CASE("\x80\2c__builtin__\neval\n.", "__builtin__.eval"),
      CASE("\x80\4\x8c\2os\x8c\6system\x93.", "os.system"),
      CASE("\x80\2(X\1\0\0\0xios\nsystem\n.", "INST"),
      CASE("\x80\2(cos\nsystem\no.", "os.system"),
      CASE("\x80\2(K\1o.", "OBJ"),
      CASE("\x80\2)\x81.", "NEWOBJ"),
      CASE("\x80\2\x82\1.", "EXT1"),
      CASE("\x80\4\x8f.", "EMPTY_SET"),
      CASE("\x80\2K\1"
           "0.",
           "POP"),
      CASE("\x80\2I1\n.", "INT"),
      CASE("\x80\2S'x'\n.", "STRING"),
      CASE("\x80\2\xff.", "0xff"),
      CASE("\x80\2K\1}b.", "BUILD"),
      CASE("\x80\2}K\1b.", "BUILD"),
      CASE("\x80\2ctorch._utils\n_rebuild_tensor_v3\n.", "_rebuild_tensor_v3"),
      CASE("\x80\2ctorch._utils\n_rebuild_qtensor\n.", "_rebuild_qtensor"),
      CASE("\x80\6.", "protocol"),
      CASE("", "protocol"),
      CASE("}.", "protocol"),
      CASE("\x80", "truncated"),
      CASE("\x80\2", "truncated"),
      CASE("\x80\2.", "empty"),
      CASE("\x80\2K", "truncated"),
      CASE("\x80\2X\xff\xff\xff\xff", "truncated"),
      CASE("\x80\2\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "truncated"),
      CASE("\x80\2\x8b\xff\xff\xff\xff.", "truncated"),
      CASE("\x80\2h\0.", "never set"),
      CASE("\x80\2j\xff\xff\xff\xff.", "never set"),
      CASE("\x80\2K\1r\xff\xff\xff\xff.", "memo number larger"),
      CASE("\x80\2q\0.", "empty"),
      CASE("\x80\2t.", "no mark"),
      CASE("\x80\2}(K\1u.", "key without a value"),
      CASE("\x80\2K\1(K\1e.", "no list"),
      CASE("\x80\2](K\1u.", "no dict"),
      CASE("\x80\2)(K\1K\2u.", "no dict"),
      CASE("\x80\2(e.", "empty"),
      CASE("\x80\2\x85.", "empty"),
      CASE("\x80\2](\x85.", "empty"),
      CASE("\x80\2R.", "empty"),
      CASE("\x80\2})R.", "no function"),
      CASE("\x80\2ctorch\nFloatStorage\n)R.", "storage type"),
      CASE("\x80\2K\1Q.", "no storage"),
      CASE("\x80\2ctorch._utils\n_rebuild_tensor_v2\n)R.", "four arguments"),
      CASE("\x80\2ctorch._utils\n_rebuild_tensor_v2\n(K\1K\1))tR.", "without a storage"),
      CASE("\x80\2cx", "truncated"),
      CASE("\x80\2cx\ny", "truncated"),
      CASE("\x80\4K\1K\1\x93.", "without a name")};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_error err = {0};
    cmkd_pickle *p;
    cmkd_status status = load(cases[i].bytes, cases[i].size, &p, &err);
    if (status == CMKD_OK || p || !strstr(err.message, cases[i].says))
      fail_msg("case %zu: %d '%s', expected '%s'", i, status, err.message, cases[i].says);
  }
}

/* One list used by OrderedDict over and over, and nested doublings: the answer comes, and memory stays bounded. */
static void bombs(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_pickle *p;
  uint8_t *bomb = malloc(1 << 20);
  size_t n = 0;
#define PUT(literal) (memcpy(bomb + n, literal, sizeof(literal) - 1), n += sizeof(literal) - 1)
  PUT("\x80\2ccollections\nOrderedDict\nq\0]q\1(");
  for (int i = 0; i < 20000; i++)
    PUT("K\1K\2\x86"); /* 20000 pairs */
  PUT("eh\1\x85q\2");
  for (int i = 0; i < 100000; i++)
    PUT("h\0h\2R"); /* 100000 copies of them: 8 billion items */
  PUT(".");
  assert_int_not_equal(load(bomb, n, &p, &err), CMKD_OK);
  assert_non_null(strstr(err.message, "copies one list too often"));
  n = 0;
  PUT("\x80\2]q\0");
  for (int i = 0; i < 255; i++) { /* 2^255 leaves if unfolded */
    PUT("](h");
    bomb[n++] = (uint8_t)i;
    PUT("h");
    bomb[n++] = (uint8_t)i;
    PUT("eq");
    bomb[n++] = (uint8_t)(i + 1);
  }
  PUT(".");
  assert_ok(load(bomb, n, &p, &err));
  assert_true(p->value_count < 1000);
  cmkd_pickle_free(p);
  n = 0;
  PUT("\x80\2");
  while (n < (1 << 20) - 1)
    bomb[n++] = '(';
  bomb[n++] = '.';
  assert_int_not_equal(load(bomb, n, &p, &err), CMKD_OK);
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  assert_true(usage.ru_maxrss < 512 * 1024); /* KB; AddressSanitizer's shadow included */
  free(bomb);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(values), cmocka_unit_test(containers), cmocka_unit_test(refusals),
                                     cmocka_unit_test(bombs)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
