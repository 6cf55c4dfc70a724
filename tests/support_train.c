#include "tests/support_train.h"
#include <unistd.h>
#include "base/hash.h"
#include "base/rng.h"

static void put_be32(FILE *file, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8)
    fputc((int)(value >> shift & 255), file);
}

static void write_split(const char *dir, const char *name, uint32_t n, uint64_t seed) {
  char path[1200];
  snprintf(path, sizeof path, "%s/%s-images-idx3-ubyte", dir, name);
  FILE *images = fopen(path, "wb");
  snprintf(path, sizeof path, "%s/%s-labels-idx1-ubyte", dir, name);
  FILE *labels = fopen(path, "wb");
  if (!images || !labels) abort();
  const uint32_t image_head[] = {0x803, n, 28, 28}, label_head[] = {0x801, n};
  for (int i = 0; i < 4; i++)
    put_be32(images, image_head[i]);
  for (int i = 0; i < 2; i++)
    put_be32(labels, label_head[i]);
  for (uint32_t i = 0; i < n; i++) {
    cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, i);
    uint32_t label = cmkd_rng_below(&rng, 10);
    cmkd_rng pattern = cmkd_rng_start(1000 + label, CMKD_STREAM_TEST, 0);
    fputc((int)label, labels);
    uint8_t level[7 * 7];
    for (int block = 0; block < 7 * 7; block++)
      level[block] = (uint8_t)cmkd_rng_below(&pattern, 160);
    for (int pixel = 0; pixel < 28 * 28; pixel++)
      fputc((int)(level[pixel / 28 / 4 * 7 + pixel % 28 / 4] + cmkd_rng_below(&rng, 96)), images);
  }
  if (fclose(images) || fclose(labels)) abort();
}

static const char *make(char spec[1100], uint64_t seed) {
  if (spec[0]) return spec;
  const char *dir = scratch_dir();
  write_split(dir, "train", TINY_TRAIN, seed);
  write_split(dir, "t10k", TINY_TEST, seed + 1);
  snprintf(spec, 1100, "mnist:%s", dir);
  return spec;
}

const char *tiny_data(void) {
  static char spec[1100];
  return make(spec, 1);
}

const char *tiny_other_data(void) {
  static char spec[1100];
  return make(spec, 77);
}

const char *program(const char *name) {
  static char path[8][1200];
  static int next;
  const char *build = getenv("CMKD_BUILD");
  char *out = path[next++ % 8];
  setenv("OMP_WAIT_POLICY", "passive", 0);
  snprintf(out, 1200, "%s/%s", build ? build : "build", name);
  if (access(out, X_OK) == 0) return out;
  printf("SKIP: %s is not built\n", out);
  return NULL;
}

const char *sha256_of(const char *format, ...) {
  static char hex[8][CMKD_SHA256_HEX];
  static int next;
  char path[1400], *out = hex[next++ % 8];
  va_list args;
  va_start(args, format);
  vsnprintf(path, sizeof path, format, args);
  va_end(args);
  if (cmkd_sha256_file(path, out, NULL) != CMKD_OK) out[0] = 0;
  return out;
}

const char *text_of(const char *format, ...) {
  static char text[4][1 << 16];
  static int next;
  char path[1400], *out = text[next++ % 4];
  va_list args;
  va_start(args, format);
  vsnprintf(path, sizeof path, format, args);
  va_end(args);
  FILE *file = fopen(path, "rb");
  size_t size = file ? fread(out, 1, (1 << 16) - 1, file) : 0;
  if (file) fclose(file);
  out[size] = 0;
  return out;
}
