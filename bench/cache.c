/* How fast a cache is read and written, beside h5py and memcpy in the same run. A row is what one epoch consumes: one
 * view's logits of one sample, delivered as float32 in the caller's buffer, frame checksums on, page cache warm. Rounds
 * alternate between the contenders and the median counts, so that a busy machine shifts all of them alike.
 *
 *     bench/cache [--quick] [--read | --write] [--threads N]
 *
 * Needs about 2 GB under $TMPDIR. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/program/environment.h"
#include "base/cpu.h"
#include "base/file.h"
#include "base/clock.h"
#include "base/rng.h"
#include "cmkd/cache.h"
#include "cmkd/cache_writer.h"

#define POOL 2048  /* distinct rows; a chunk holds fewer, so repeats don't help the compressor */
#define BATCH 1024 /* rows a call of the stream delivers */
enum { ROUNDS = 7 };

static cmkd_error err;
static int threads;
static void check(cmkd_status status) {
  if (status == CMKD_OK) return;
  fprintf(stderr, "bench: %s\n", err.message);
  exit(1);
}

static float *make_pool(uint32_t C) {
  float *pool = malloc((size_t)POOL * C * sizeof *pool);
  if (!pool) exit(1);
  for (uint32_t r = 0; r < POOL; r++) { /* like a trained network's: noise, a strong class, a few rivals */
    cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, r);
    for (uint32_t c = 0; c < C; c++)
      pool[(size_t)r * C + c] = (float)(2.2 * cmkd_rng_normal(&rng));
    for (int k = 0; k < 4; k++)
      pool[(size_t)r * C + cmkd_rng_below(&rng, C)] += (float)(3 + 3 * (k == 0) + cmkd_rng_uniform(&rng) * 4);
  }
  return pool;
}

/* One cache of synthetic logits; gives the seconds from first row to finished master. */
static double write_cache(const char *path, uint32_t samples, uint32_t views, uint32_t C, const char *codec,
                          const float *pool) {
  cmkd_cache_spec spec = {.samples = samples, .views = views, .classes = C, .threads = threads};
  cmkd_cache_identity *id = &spec.identity;
  memset(id->teacher_sha256, '0', 64);
  snprintf(id->codec, sizeof id->codec, "%s", codec);
  snprintf(id->dataset, sizeof id->dataset, "cifar100");
  snprintf(id->split, sizeof id->split, "train");
  id->policy = CMKD_AUGMENT_CROP_FLIP;
  cmkd_cache_writer *w;
  double start = cmkd_seconds();
  check(cmkd_cache_writer_open(path, &spec, &w, &err));
  for (uint32_t k = 0; k < cmkd_cache_writer_shards(w); k++) {
    cmkd_cache_shard_state state;
    uint64_t first;
    uint32_t n;
    check(cmkd_cache_writer_begin(w, k, &state, &err));
    cmkd_cache_writer_range(w, k, &first, &n);
    uint64_t *ids = malloc(n * 8), *seeds = malloc((size_t)n * views * 8);
    int32_t *labels = calloc(n, 4);
    if (!ids || !seeds || !labels) exit(1);
    for (uint32_t i = 0; i < n; i++) {
      ids[i] = first + i;
      for (uint32_t v = 0; v < views; v++)
        seeds[(size_t)i * views + v] = (first + i) * 0x9E3779B97F4A7C15u + v;
    }
    check(cmkd_cache_writer_samples(w, ids, labels, seeds, &err));
    for (uint32_t v = 0; v < views; v++)
      for (uint32_t i = 0; i < n;) {
        uint32_t from = (uint32_t)((first + i + v * 7919) % POOL), step = POOL - from < n - i ? POOL - from : n - i;
        check(cmkd_cache_writer_put(w, v, i, step, pool + (size_t)from * C, C, &err));
        i += step;
      }
    check(cmkd_cache_writer_end(w, &err));
    free(ids);
    free(seeds);
    free(labels);
  }
  check(cmkd_cache_writer_finish(w, &err));
  cmkd_cache_writer_close(w);
  return cmkd_seconds() - start;
}

static double read_epoch(cmkd_cache *cache, uint32_t view, const uint32_t *order, uint32_t n, float *batch) {
  cmkd_stream *stream;
  cmkd_stream_options options = {.threads = threads};
  double start = cmkd_seconds();
  check(cmkd_stream_open(cache, view, order, n, &options, &stream, &err));
  for (uint32_t at = 0; at < n; at += BATCH)
    check(cmkd_stream_next(stream, n - at < BATCH ? n - at : BATCH, batch, NULL, &err));
  double seconds = cmkd_seconds() - start;
  cmkd_stream_free(stream);
  return n / seconds / 1e6;
}

/* The second of two epochs of a kind in a row, as in training: the first finds the reader's memory as another kind of
 * order left it. */
static double read_again(cmkd_cache *cache, uint32_t view, const uint32_t *order, uint32_t n, float *batch) {
  read_epoch(cache, view, order, n, batch);
  return read_epoch(cache, view, order, n, batch);
}

/* h5py's best: whole chunks of one view, no conversion. Two ways, each twice as ours is, the fastest counts. Million
 * rows/s; NaN when it can't run. */
static double read_h5py(const char *path, uint32_t view, uint32_t rows) {
  const char *build = getenv("CMKD_BUILD");
  char command[4096];
  double rate = NAN;
  snprintf(command, sizeof command,
           "HDF5_PLUGIN_PATH='%s' /usr/bin/python3 -c \"\nimport h5py, os, time\nm = h5py.File('%s', 'r')\n"
           "d = [h5py.File(os.path.join(os.path.dirname('%s'), m.get(k, getlink=True).filename), 'r')['logits'] for k "
           "in sorted(m) if k.startswith('shard')]\n"
           "best = 9e9\n"
           "for again in range(2):\n"
           "  a = time.time(); n = sum(len(s[i:i + %u, %u]) for s in d for i in range(0, len(s), %u))\n"
           "  b = time.time(); n = sum(len(s[:, %u]) for s in d)\n"
           "  best = min(best, b - a, time.time() - b)\n"
           "print(n / best / 1e6)\" 2>/dev/null",
           build ? build : "build", path, path, rows, view, rows, view);
  FILE *pipe = popen(command, "r");
  if (pipe && fscanf(pipe, "%lf", &rate) != 1) rate = NAN;
  if (pipe) pclose(pipe);
  return rate;
}

static double read_memcpy(const float *rows, uint32_t n, uint32_t C, float *batch) {
  double start = cmkd_seconds();
  for (uint32_t at = 0; at + BATCH <= n; at += BATCH) {
    memcpy(batch, rows + (size_t)at * C, (size_t)BATCH * C * sizeof *batch);
    __asm__ volatile("" : : "r"(batch) : "memory");
  }
  return n / BATCH * BATCH / (cmkd_seconds() - start) / 1e6;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}
static double median(double *x, int n) {
  qsort(x, (size_t)n, sizeof *x, ascending);
  return x[n / 2];
}

static void bench_read(const char *dir, uint32_t samples, uint32_t C, const char *codec, double target) {
  char *path = cmkd_format("%s/read-%u-%s.h5", dir, C, codec);
  float *pool = make_pool(C), *batch = malloc((size_t)BATCH * C * sizeof *batch), *rows = malloc((size_t)200000000);
  uint32_t *straight = malloc(samples * sizeof *straight), *shuffled = malloc(samples * sizeof *straight),
           *blocks = malloc(samples * sizeof *straight);
  cmkd_cache *cache;
  if (!batch || !rows || !straight || !shuffled || !blocks) exit(1);
  memset(rows, 1, 200000000);
  write_cache(path, samples, 2, C, codec, pool);
  check(cmkd_cache_open(path, &cache, &err));
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  uint32_t chunk = C >= 1000 ? 128 : 1024;
  for (uint32_t i = 0; i < samples; i++)
    straight[i] = i;
  cmkd_epoch_order(1, 0, samples, 0, shuffled);
  cmkd_epoch_order(1, 0, samples, chunk, blocks);
  double s[ROUNDS], f[ROUNDS], b[ROUNDS], h[ROUNDS], m[ROUNDS];
  for (int i = 0; i < ROUNDS; i++) {
    s[i] = read_again(cache, (uint32_t)i & 1, straight, samples, batch);
    h[i] = read_h5py(path, (uint32_t)i & 1, chunk);
    f[i] = read_again(cache, (uint32_t)i & 1, shuffled, samples, batch);
    b[i] = read_again(cache, (uint32_t)i & 1, blocks, samples, batch);
    m[i] = read_memcpy(rows, (uint32_t)(200000000 / (C * sizeof *rows)), C, batch);
  }
  double straight_rate = median(s, ROUNDS), h5py = median(h, ROUNDS), full = median(f, ROUNDS),
         block = median(b, ROUNDS);
  printf("read   C=%-4u %-6s  %7.2f M rows/s in order (aim %.1f)  %5.1fx h5py's %.2f  shuffled %.2f (%.0f%%), by "
         "blocks %.2f (%.0f%%)  memcpy %.0f  %.1f B/row\n",
         C, codec, straight_rate, target, straight_rate / h5py, h5py, full, 100 * full / straight_rate, block,
         100 * block / straight_rate, median(m, ROUNDS),
         (double)info->logit_bytes / (double)(info->samples * info->views));
  cmkd_cache_close(cache);
  free(pool);
  free(batch);
  free(rows);
  free(straight);
  free(shuffled);
  free(blocks);
  free(path);
}

static long peak_kb(void) {
  char line[256];
  long kb = 0;
  FILE *status = fopen("/proc/self/status", "r");
  while (status && fgets(line, sizeof line, status))
    if (sscanf(line, "VmHWM: %ld", &kb) == 1) break;
  if (status) fclose(status);
  return kb;
}

/* A path of ours without spaces, or a pattern; takes it. */
static int remove_all(char *path) {
  char *command = path ? cmkd_format("rm -rf %s", path) : NULL;
  int status = command ? system(command) : 1;
  free(command);
  free(path);
  return status;
}

/* In a child, so that the peak is the writer's alone. */
static void bench_write(const char *dir, uint32_t samples, uint32_t views, uint32_t C, const char *codec) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    char *path = cmkd_format("%s/write-%u-%u-%s.h5", dir, samples, C, codec);
    float *pool = make_pool(C);
    double seconds = write_cache(path, samples, views, C, codec, pool), rows = (double)samples * views;
    long peak = peak_kb();
    cmkd_cache *cache;
    check(cmkd_cache_open(path, &cache, &err));
    double bytes = (double)cmkd_cache_get_info(cache)->bytes;
    printf("write  C=%-4u %-6s  %7.2f M rows/s  %4.1f M rows in %.1f s, %.0f MB on disk (%.1f B/row), peak memory %ld "
           "MB\n",
           C, codec, rows / seconds / 1e6, rows / 1e6, seconds, bytes / 1e6, bytes / rows, peak / 1024);
    fflush(stdout);
    _exit(0);
  }
  int status;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    fprintf(stderr, "bench: the writer failed\n");
    exit(1);
  }
  remove_all(cmkd_format("%s/write-*", dir));
}

int main(int argc, char **argv) {
  cmkd_environment_lower_isa();
  int quick = 0, only_read = 0, only_write = 0;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--quick"))
      quick = 1;
    else if (!strcmp(argv[i], "--read"))
      only_read = 1;
    else if (!strcmp(argv[i], "--write"))
      only_write = 1;
    else if (!strcmp(argv[i], "--threads") && i + 1 < argc)
      threads = atoi(argv[++i]);
    else {
      fprintf(stderr, "usage: bench/cache [--quick] [--read | --write] [--threads N]\n");
      return 2;
    }
  }
  const char *tmp = getenv("TMPDIR");
  char *dir = cmkd_format("%s/cmkd-bench-XXXXXX", tmp ? tmp : "/tmp");
  if (!dir || !mkdtemp(dir)) {
    perror("bench: a folder under $TMPDIR");
    return 1;
  }
  printf("cache: %d cores, %s, %d threads, median of %d alternating rounds\n", cmkd_cpu_count(),
         cmkd_isa_name(cmkd_cpu_isa()), threads ? threads : cmkd_cpu_count(), ROUNDS);
  if (!only_read) {
    bench_write(dir, 100000, 1, 100, "f16");
    bench_write(dir, 1000000, 1, 100, "f16");
    if (!quick) bench_write(dir, 1000000, 1, 100, "u8sqrt");
    if (!quick) bench_write(dir, 10000000, 1, 100, "f16");
    if (!quick) bench_write(dir, 1000000, 1, 1000, "f16");
  }
  if (!only_write) {
    bench_read(dir, quick ? 250000 : 1000000, 100, "f16", 25);
    bench_read(dir, quick ? 25000 : 100000, 1000, "f16", 2.5);
    if (!quick) bench_read(dir, 1000000, 100, "u8sqrt", 25);
  }
  int status = remove_all(cmkd_format("%s", dir));
  free(dir);
  return status != 0;
}
