/* The registry of codecs, and what they share: the choice of vector loops, and finding bad numbers. */
#include "formats/cache/codec.h"
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include "base/cpu.h"
#include "base/text.h"

static const cmkd_codec *const codecs[] = {&cmkd_codec_f16, &cmkd_codec_f32, &cmkd_codec_u8sqrt, &cmkd_codec_topk};
enum { CODECS = sizeof codecs / sizeof *codecs };

uint32_t cmkd_codec_keep(const char *name) {
  const char *digits = strchr(name, ':'), *end = digits ? digits + 1 : "";
  uint32_t keep = 0;
  if (*end < '1') return 0; /* one text a number */
  for (; *end >= '0' && *end <= '9' && keep < 1000000; end++)
    keep = keep * 10 + (uint32_t)(*end - '0');
  return *end ? 0 : keep;
}

static cmkd_status unknown_codec(const char *name, cmkd_error *err) {
  const char *names[CODECS + 1] = {NULL};
  char known[128] = "";
  for (size_t i = 0; i < CODECS; i++) {
    const size_t used = strlen(known);
    names[i] = codecs[i]->name;
    snprintf(known + used, sizeof known - used, "%s%s%s", i ? ", " : "", names[i], codecs[i]->thin ? ":K" : "");
  }
  const char *near = cmkd_nearest(name, names);
  if (near)
    return cmkd_fail(err, CMKD_ERR_USAGE, "unknown codec \"%.40s\"; did you mean \"%s\"? (%s)", name, near, known);
  return cmkd_fail(err, CMKD_ERR_USAGE, "unknown codec \"%.40s\"; this build has %s", name, known);
}

cmkd_status cmkd_codec_find(const char *name, const cmkd_codec **out, cmkd_error *err) {
  const char *colon = strchr(name, ':');
  for (size_t i = 0; i < CODECS; i++) {
    const cmkd_codec *codec = codecs[i];
    size_t length = strlen(codec->name);
    if (strncmp(codec->name, name, length) != 0 || (name[length] && name + length != colon)) continue;
    if (!codec->thin && colon) break;
    if (codec->thin && !cmkd_codec_keep(name))
      return cmkd_fail(err, CMKD_ERR_USAGE, "codec \"%.40s\": say how many logits of a row it keeps, for example %s:10",
                       name, codec->name);
    *out = codec;
    return CMKD_OK;
  }
  return unknown_codec(name, err);
}

static const struct {
  cmkd_dtype dtype;
  const cmkd_codec *codec;
} plain[] = {{CMKD_F32, &cmkd_codec_f32}, {CMKD_F16, &cmkd_codec_f16}, {CMKD_U8, &cmkd_codec_u8}};

const cmkd_codec *cmkd_codec_of_dtype(cmkd_dtype dtype) {
  for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
    if (plain[i].dtype == dtype) return plain[i].codec;
  return NULL;
}

const cmkd_codec *cmkd_codec_of_dtype_name(const char *name, cmkd_dtype *dtype) {
  for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
    if (!strcmp(plain[i].codec->name, name)) {
      *dtype = plain[i].dtype;
      return plain[i].codec;
    }
  return NULL;
}

const cmkd_codec_kernels *cmkd_codec_kernels_get(void) {
  /* Kept for speed alone: any thread would find the same answer again. */
  static const cmkd_codec_kernels portable;
  static _Atomic(const cmkd_codec_kernels *) chosen;
  const cmkd_codec_kernels *kernels = atomic_load_explicit(&chosen, memory_order_acquire);
  if (kernels) return kernels;
  kernels = &portable;
#if defined(__x86_64__)
  if (cmkd_cpu_isa() >= CMKD_ISA_AVX2) kernels = &cmkd_codec_kernels_avx2;
#endif
  atomic_store_explicit(&chosen, kernels, memory_order_release);
  return kernels;
}

int64_t cmkd_codec_first_bad(const float *logits, size_t count, double limit) {
  float bound = (float)limit;
  const cmkd_codec_kernels *kernels = cmkd_codec_kernels_get();
  if (kernels->first_bad) return kernels->first_bad(logits, count, bound);
  for (size_t i = 0; i < count; i++)
    if (!(fabsf(logits[i]) <= bound)) return (int64_t)i;
  return -1;
}

int64_t cmkd_codec_first_refused(const cmkd_codec *codec, const float *values, size_t count) {
  int64_t bad = cmkd_codec_first_bad(values, count, codec->limit);
  size_t sound = bad >= 0 ? (size_t)bad : count;
  for (size_t i = 0; codec->whole && i < sound; i++)
    if (!(values[i] >= 0 && values[i] == floorf(values[i]))) return (int64_t)i;
  return bad;
}
