/* cmkd-cache repack, merge, subset, import, list, diff, plan: run as a user runs them, on synthetic caches, results
 * read back. */
#include "tests/support.h"
#include <jansson.h>
#include <math.h>
#include "base/file.h"
#include "base/rng.h"
#include "cmkd/dataset.h"
#include "formats/cache/codec.h"
#include "formats/npy.h"
#include "tests/support_cache.h"

enum { N = 300, V = 3, C = 10 };
static cmkd_error err;
static const char *dir;

static synthetic base(void) {
  return (synthetic){
      .samples = N, .views = V, .classes = C, .shard_samples = 128, .chunk_samples = 32, .codec = "f32", .seed = 5};
}

/* $CMKD_BUILD/cmkd-cache ARGS in the scratch folder */
static int tool(const char **output, const char *arguments) {
  const char *build = getenv("CMKD_BUILD");
  return run_command(output, "cd '%s' && '%s/cmkd-cache' %s", dir, build ? build : "build", arguments);
}
static void ok(const char *arguments) {
  const char *output;
  if (tool(&output, arguments) != 0) fail_msg("%s: %s", arguments, output);
}
static void refused(const char *arguments, int status, const char *words) {
  const char *output;
  int got = tool(&output, arguments);
  if (got != status || !strstr(output, words))
    fail_msg("%s: exit %d, wanted %d and \"%s\": %s", arguments, got, status, words, output);
}
static char *at(const char *name) { return cmkd_path_join(dir, name); }
static cmkd_cache *opened(const char *name) {
  char *path = at(name);
  cmkd_cache *cache;
  assert_ok(cmkd_cache_open(path, &cache, &err));
  free(path);
  return cache;
}
static void build(const char *name, const synthetic *s) {
  char *path = at(name);
  assert_ok(synthetic_build(s, path, NULL, &err));
  free(path);
}

/* Before each test: a folder of its own with full.h5 in it. */
static int setup(void **state) {
  (void)state;
  synthetic s = base();
  dir = scratch_dir();
  build("full.h5", &s);
  return 0;
}

static void repack_measures(void **state) {
  (void)state;
  const char *output;
  assert_int_equal(tool(&output, "repack full.h5 small.h5 --codec u8sqrt --json --quiet"), 0);
  json_t *o = json_loads(output, 0, NULL);
  assert_non_null(o);
  assert_int_equal(json_integer_value(json_object_get(o, "rows")), N * V);
  assert_true(json_real_value(json_object_get(o, "top1_agreement")) == 100.0); /* the codec's promise */
  assert_true(json_real_value(json_object_get(o, "pearson")) > 0.999);
  assert_true(json_real_value(json_object_get(o, "spearman")) > 0.99);
  double kl1 = json_real_value(json_object_get(o, "kl_T1")), kl4 = json_real_value(json_object_get(o, "kl_T4"));
  assert_true(kl1 > 0 && kl1 < 1e-3 && kl4 > 0 && kl4 < 1e-3);
  assert_true(json_real_value(json_object_get(o, "bytes_per_row")) <
              json_real_value(json_object_get(o, "bytes_per_row_before")));
  json_decref(o);
  ok("repack full.h5 again.h5 --codec f32 --quiet");
  ok("diff full.h5 again.h5 --quiet");
  refused("diff full.h5 small.h5 --quiet", 1, "differ");
  refused("repack full.h5 small.h5 --quiet", 1, "exists");
  refused("repack full.h5 x.h5 --codec u8sqr", 2, "u8sqrt");
}

static int descending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

/* Against a sort in double: the K largest as they are (to half precision), the rest one value that keeps their mass. */
static void check_thinned(cmkd_cache *whole, cmkd_cache *thin, uint32_t keep) {
  float row[C], sorted[C], got[C];
  for (uint32_t v = 0; v < V; v++)
    for (uint64_t i = 0; i < N; i++) {
      assert_ok(cmkd_cache_read(whole, v, i, 1, row, &err));
      assert_ok(cmkd_cache_read(thin, v, i, 1, got, &err));
      memcpy(sorted, row, sizeof row);
      qsort(sorted, C, sizeof *sorted, descending);
      double mass = 0, tie = HUGE_VAL;
      for (uint32_t c = keep; c < C; c++)
        mass += exp((double)sorted[c]);
      for (int c = 0; c < C; c++) {
        double want = row[c] >= sorted[keep - 1] ? (double)row[c] : log(mass / (C - keep));
        assert_true(fabs(got[c] - want) <= 0x1p-11 * fmax(1, fabs(want)) + 1e-5);
        if (row[c] >= sorted[keep - 1]) continue;
        assert_true(tie == HUGE_VAL || tie == (double)got[c]);
        tie = got[c];
      }
    }
}

static void top_k_only_when_meant(void **state) {
  (void)state;
  const char *output;
  cmkd_cache *whole, *thin;
  refused("repack full.h5 thin.h5 --codec topk:3", 2, "--allow-top-k");
  refused("repack full.h5 thin.h5 --codec topk --allow-top-k", 2, "topk:10");
  refused("repack full.h5 thin.h5 --codec topk:03 --allow-top-k", 2, "topk:10");
  refused("repack full.h5 thin.h5 --codec topk:10 --allow-top-k", 2, "keeps all of 10");
  refused("repack full.h5 thin.h5 --codec f16:3", 2, "f16");
  ok("repack full.h5 thin.h5 --codec topk:3 --allow-top-k --quiet");
  ok("repack full.h5 one.h5 --codec topk:1 --allow-top-k --quiet");
  ok("verify --deep thin.h5");
  assert_int_equal(tool(&output, "info thin.h5"), 0);
  assert_non_null(strstr(output, "codec topk:3"));
  assert_non_null(strstr(output, "the 3 largest"));
  whole = opened("full.h5");
  thin = opened("thin.h5");
  assert_int_equal(cmkd_cache_get_info(whole)->kept, C);
  assert_int_equal(cmkd_cache_get_info(thin)->kept, 3);
  check_thinned(whole, thin, 3);
  cmkd_cache_close(thin);
  thin = opened("one.h5");
  check_thinned(whole, thin, 1);
  cmkd_cache_close(thin);
  cmkd_cache_close(whole);
  refused("repack thin.h5 again.h5 --codec f16", 1, "would hide");
  ok("subset thin.h5 thin0.h5 --views 0 --quiet");
  ok("subset full.h5 full1.h5 --views 1 --quiet");
  refused("merge both.h5 thin0.h5 full1.h5", 2, "--allow-top-k");
  refused("merge both.h5 thin.h5 thin.h5 --average", 1, "whole rows");
  refused("subset full.h5 thinner2.h5 --views 0 --codec topk:2", 2, "--allow-top-k");
  ok("subset thin.h5 thinner.h5 --views 0 --quiet"); /* thinning what is thin changes nothing */
  cmkd_cache *part = opened("thinner.h5");
  thin = opened("thin.h5");
  float a[N * C], b[N * C];
  assert_ok(cmkd_cache_read(thin, 0, 0, N, a, &err));
  assert_ok(cmkd_cache_read(part, 0, 0, N, b, &err));
  assert_memory_equal(a, b, sizeof a);
  cmkd_cache_close(part);
  cmkd_cache_close(thin);
}

/* Ties at the cut: the lower class is kept, exactly K of them. */
static void top_k_of_ties(void **state) {
  (void)state;
  const cmkd_codec *codec;
  const float row[6] = {1, 2, 2, 2, 0, -30000}, equal[4] = {7, 7, 7, 7};
  float out[6];
  assert_ok(cmkd_codec_find("topk:2", &codec, &err));
  codec->thin(row, 6, 2, out);
  assert_true(out[1] == 2 && out[2] == 2 && out[3] == out[0] && out[3] == out[5] && out[3] < 2);
  assert_true(fabs(out[3] - log((exp(1.0) + exp(2.0) + 1) / 4)) < 1e-6);
  codec->thin(equal, 4, 3, out);
  for (int c = 0; c < 4; c++)
    assert_true(out[c] == 7);
  cmkd_rng rng = cmkd_rng_start(4, CMKD_STREAM_TEST, 9);
  float many[257], sorted[257], got[257];
  for (int round = 0; round < 300; round++) {
    uint32_t keep = 1 + cmkd_rng_below(&rng, 256), kept = 0;
    for (int c = 0; c < 257; c++)
      sorted[c] = many[c] = (float)cmkd_rng_below(&rng, round < 150 ? 5 : 100000);
    qsort(sorted, 257, sizeof *sorted, descending);
    codec->thin(many, 257, keep, got);
    for (int c = 0; c < 257; c++) {
      kept += many[c] > sorted[keep - 1];
      assert_true(many[c] <= sorted[keep - 1] || got[c] == many[c]);
      assert_true(many[c] >= sorted[keep - 1] || got[c] <= sorted[keep - 1]);
    }
    assert_true(kept < keep);
  }
}

static void subset_keeps_ids_and_seeds(void **state) {
  (void)state;
  synthetic s = base();
  ok("subset full.h5 part.h5 --samples 7,20-219 --views 0,2 --classes 1-3,8 --quiet");
  cmkd_cache *cache = opened("part.h5");
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const uint64_t *ids;
  const int32_t *labels;
  uint64_t seeds[N], expected = 0;
  float rows[N * C], row[C];
  assert_int_equal(info->views, 2);
  assert_ok(cmkd_cache_ids(cache, &ids, &err));
  assert_ok(cmkd_cache_labels(cache, &labels, &err));
  assert_ok(cmkd_cache_seeds(cache, 1, seeds, &err));
  assert_ok(cmkd_cache_read(cache, 1, 0, info->samples, rows, &err));
  for (uint64_t id = 0; id < N; id++) {
    int32_t label = synthetic_label(&s, id);
    if (!(id == 7 || (id >= 20 && id <= 219)) || !((label >= 1 && label <= 3) || label == 8)) continue;
    assert_int_equal(ids[expected], id);
    assert_int_equal(labels[expected], label);
    assert_true(seeds[expected] == synthetic_seed(&s, id, 2));
    synthetic_row(&s, id, 2, row);
    assert_memory_equal(rows + expected * C, row, sizeof row);
    expected++;
  }
  assert_int_equal(info->samples, expected);
  cmkd_cache_close(cache);
  refused("subset full.h5 y.h5 --samples 300", 2, "0 to 299");
  refused("subset full.h5 y.h5 --views 1-x", 2, "ranges");
  refused("subset full.h5 y.h5 --samples 0 --classes 9", 2, "no sample");
}

static void merge_samples_and_views(void **state) {
  (void)state;
  ok("subset full.h5 a.h5 --samples 0-149 --quiet");
  ok("subset full.h5 b.h5 --samples 150-299 --quiet");
  ok("merge whole.h5 a.h5 b.h5 --quiet");
  ok("diff full.h5 whole.h5 --quiet");
  ok("subset full.h5 v0.h5 --views 0 --quiet");
  ok("subset full.h5 v12.h5 --views 1,2 --quiet");
  ok("merge views.h5 v0.h5 v12.h5 --quiet");
  ok("diff full.h5 views.h5 --quiet");
  refused("merge z.h5 a.h5 whole.h5 --quiet", 1, "another input");
  refused("merge z.h5 v0.h5 v0.h5 --quiet", 1, "the same seeds");
  refused("merge z.h5 v12.h5 full.h5 --quiet", 1, "the same seeds");
  refused("merge z.h5 a.h5 nothing.h5", 1, "nothing.h5");
  synthetic other = base();
  other.classes = 7;
  build("seven.h5", &other);
  refused("merge z.h5 full.h5 seven.h5", 1, "classes");
}

static void average_of_teachers(void **state) {
  (void)state;
  synthetic s = base(), t = base();
  cmkd_cache_spec spec;
  cmkd_cache_writer *writer;
  char *path = at("teacher2.h5");
  synthetic_spec(&s, &spec);
  memset(spec.identity.teacher_sha256, 'c', 64);
  strcpy(spec.identity.teacher_name, "second");
  t.seed = 99; /* other logits on the same pixels */
  assert_ok(cmkd_cache_writer_open(path, &spec, &writer, &err));
  for (uint64_t i = 0; i < N; i++) {
    int32_t label = synthetic_label(&s, i);
    uint64_t seeds[V];
    float rows[V * C];
    for (uint32_t v = 0; v < V; v++) {
      seeds[v] = synthetic_seed(&s, i, v);
      synthetic_row(&t, i, v, rows + v * C);
    }
    assert_ok(cmkd_cache_writer_add(writer, 1, &i, &label, seeds, rows, &err));
  }
  assert_ok(cmkd_cache_writer_finish(writer, &err));
  cmkd_cache_writer_close(writer);
  free(path);
  refused("merge z.h5 full.h5 teacher2.h5", 1, "teacher");
  ok("merge --average mean.h5 full.h5 teacher2.h5 --quiet");
  cmkd_cache *cache = opened("mean.h5");
  float a[C], b[C], mean[C];
  for (uint64_t i = 0; i < N; i += 37) {
    assert_ok(cmkd_cache_read(cache, 1, i, 1, mean, &err));
    synthetic_row(&s, i, 1, a);
    synthetic_row(&t, i, 1, b);
    for (int c = 0; c < C; c++)
      assert_true(mean[c] == (float)(((double)a[c] + b[c]) / 2));
  }
  assert_non_null(strstr(cmkd_cache_get_info(cache)->identity.teacher_name, "second"));
  cmkd_cache_close(cache);
  synthetic moved = base();
  moved.seed = 6; /* other seeds: other pixels */
  build("moved.h5", &moved);
  refused("merge --average z.h5 full.h5 moved.h5 --quiet", 1, "other pixels");
}

static void write_npy(const char *name, cmkd_dtype dtype, int dims, const int64_t *shape, const void *data,
                      uint64_t count) {
  char *path = at(name);
  cmkd_npy_writer *writer;
  assert_ok(cmkd_npy_begin(path, dtype, dims, shape, &writer, &err));
  assert_ok(cmkd_npy_append(writer, data, count, &err));
  assert_ok(cmkd_npy_end(writer, &err));
  free(path);
}

static void import_of_a_dump(void **state) {
  (void)state;
  synthetic s = base();
  static float logits[N * V * C];
  static uint64_t seeds[N * V];
  static int64_t labels[N];
  for (uint32_t i = 0; i < N; i++) {
    labels[i] = synthetic_label(&s, i);
    for (uint32_t v = 0; v < V; v++) {
      synthetic_row(&s, i, v, logits + (i * V + v) * C);
      seeds[i * V + v] = synthetic_seed(&s, i, v);
    }
  }
  synthetic_images(&s, dir, 28);
  write_npy("logits.npy", CMKD_F32, 3, (const int64_t[]){N, V, C}, logits, N * V * C);
  write_npy("seeds.npy", CMKD_U64, 2, (const int64_t[]){N, V}, seeds, N * V);
  write_npy("labels.npy", CMKD_I64, 1, (const int64_t[]){N}, labels, N);
  write_npy("clean.npy", CMKD_F32, 2, (const int64_t[]){N, C}, logits, N * C);
  ok("import --logits logits.npy --seeds seeds.npy --labels labels.npy --augment crop+flip --data fashion-mnist:. "
     "--teacher-name vit --codec f32 --out imported.h5");
  cmkd_cache *cache = opened("imported.h5");
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  uint64_t column[N];
  float row[C];
  assert_int_equal(info->identity.policy, CMKD_AUGMENT_CROP_FLIP);
  assert_string_equal(info->identity.teacher_name, "vit");
  assert_int_equal(info->samples, N);
  assert_ok(cmkd_cache_seeds(cache, 2, column, &err));
  for (uint32_t i = 0; i < N; i += 41) {
    assert_ok(cmkd_cache_read(cache, 2, i, 1, row, &err));
    assert_memory_equal(row, logits + (i * V + 2) * C, sizeof row);
    assert_true(column[i] == seeds[i * V + 2]);
  }
  cmkd_cache_close(cache);
  ok("import --logits clean.npy --data fashion-mnist:. --teacher-name vit --out clean.h5");
  cache = opened("clean.h5");
  assert_int_equal(cmkd_cache_get_info(cache)->identity.policy, CMKD_AUGMENT_NONE);
  assert_int_equal(cmkd_cache_get_info(cache)->views, 1);
  cmkd_cache_close(cache);
  ok("verify --deep clean.h5 --quiet");
  refused("import --logits logits.npy --data fashion-mnist:. --teacher-name vit --out q.h5", 2, "--seeds");
  refused("import --logits logits.npy --seeds seeds.npy --data fashion-mnist:. --teacher-name vit --out q.h5", 2,
          "--augment");
  labels[17] = (labels[17] + 1) % C;
  write_npy("labels.npy", CMKD_I64, 1, (const int64_t[]){N}, labels, N);
  refused("import --logits clean.npy --labels labels.npy --data fashion-mnist:. --teacher-name vit --out q.h5", 1,
          "sample 17");
  logits[40] = NAN;
  write_npy("clean.npy", CMKD_F32, 2, (const int64_t[]){N, C}, logits, N * C);
  refused("import --logits clean.npy --data fashion-mnist:. --teacher-name vit --out q.h5", 1, "sample 4");
  const char *output;
  assert_int_equal(run_command(&output, "ls '%s'/q.*", dir) == 0, 0); /* nothing half-written */
}

/* What export writes import reads: the same rows, labels and seeds. */
static void export_and_import_agree(void **state) {
  (void)state;
  synthetic s = base();
  synthetic_images(&s, dir, 28);
  ok("export full.h5 --out dump.safetensors --quiet");
  ok("import --logits dump.safetensors --augment crop+flip --data fashion-mnist:. --teacher-name synthetic --codec f32 "
     "--out back.h5");
  cmkd_cache *a = opened("full.h5"), *b = opened("back.h5");
  float x[N * C], y[N * C];
  uint64_t p[N], q[N];
  for (uint32_t v = 0; v < V; v++) {
    assert_ok(cmkd_cache_read(a, v, 0, N, x, &err));
    assert_ok(cmkd_cache_read(b, v, 0, N, y, &err));
    assert_memory_equal(x, y, sizeof x);
    assert_ok(cmkd_cache_seeds(a, v, p, &err));
    assert_ok(cmkd_cache_seeds(b, v, q, &err));
    assert_memory_equal(p, q, sizeof p);
  }
  cmkd_cache_close(a);
  cmkd_cache_close(b);
}

static void list_and_plan(void **state) {
  (void)state;
  const char *output;
  assert_int_equal(tool(&output, "list ."), 0);
  assert_non_null(strstr(output, "full.h5"));
  assert_null(strstr(output, "shard-"));
  char *broken = at("broken.h5"), *good = at("full.h5");
  uint8_t *bytes;
  size_t size;
  assert_ok(cmkd_file_read(good, 1 << 24, &bytes, &size, &err));
  cmkd_piece piece = {bytes, size / 2};
  assert_ok(cmkd_file_write(broken, &piece, 1, &err));
  assert_int_equal(tool(&output, "list --json ."), 0);
  json_t *all = json_loads(output, 0, NULL), *entry;
  size_t index;
  int seen = 0;
  json_array_foreach(all, index, entry) seen +=
      strstr(json_string_value(json_object_get(entry, "cache")), "broken.h5") && json_object_get(entry, "error");
  assert_int_equal(seen, 1);
  json_decref(all);
  free(bytes);
  free(broken);
  free(good);
  assert_int_equal(
      tool(&output,
           "plan --samples 50000 --classes 100 --views all --teacher-rate 1000 --epochs 240 --experiments 10 --json"),
      0);
  json_t *o = json_loads(output, 0, NULL);
  assert_true(json_number_value(json_object_get(o, "build_seconds")) == 8100);
  assert_true(json_number_value(json_object_get(o, "live_seconds")) == 120000);
  assert_true(fabs(json_number_value(json_object_get(o, "break_even_experiments")) - 0.675) < 1e-9);
  json_decref(o);
  refused("plan --samples 5 --classes 10", 2, "--teacher-rate");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test_setup(repack_measures, setup),
                                     cmocka_unit_test_setup(top_k_only_when_meant, setup),
                                     cmocka_unit_test_setup(top_k_of_ties, setup),
                                     cmocka_unit_test_setup(subset_keeps_ids_and_seeds, setup),
                                     cmocka_unit_test_setup(merge_samples_and_views, setup),
                                     cmocka_unit_test_setup(average_of_teachers, setup),
                                     cmocka_unit_test_setup(import_of_a_dump, setup),
                                     cmocka_unit_test_setup(export_and_import_agree, setup),
                                     cmocka_unit_test_setup(list_and_plan, setup)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
