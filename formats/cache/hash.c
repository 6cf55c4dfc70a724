/* XXH64, fletcher32 and lookup3, written from their public descriptions. They find accidents; content is identified by
 * SHA-256 (base/hash.h). */
#include "formats/cache/hash.h"
#include <stdatomic.h>
#include <string.h>
#include "base/cpu.h"

#define P1 0x9E3779B185EBCA87ull
#define P2 0xC2B2AE3D27D4EB4Full
#define P3 0x165667B19E3779F9ull
#define P4 0x85EBCA77C2B2AE63ull
#define P5 0x27D4EB2F165667C5ull

static uint64_t rotl64(uint64_t x, int r) { return x << r | x >> (64 - r); }
static uint64_t load64(const uint8_t *p) {
  uint64_t x;
  memcpy(&x, p, 8);
  return x;
}
static uint32_t load32(const uint8_t *p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}
static uint64_t xxh_round(uint64_t acc, uint64_t input) { return rotl64(acc + input * P2, 31) * P1; }
static uint64_t xxh_merge(uint64_t hash, uint64_t acc) { return (hash ^ xxh_round(0, acc)) * P1 + P4; }

static void stripes_scalar(uint64_t lanes[4], const uint8_t *p, size_t stripes) {
  uint64_t a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];
  for (; stripes; stripes--, p += 32) {
    a = xxh_round(a, load64(p));
    b = xxh_round(b, load64(p + 8));
    c = xxh_round(c, load64(p + 16));
    d = xxh_round(d, load64(p + 24));
  }
  lanes[0] = a;
  lanes[1] = b;
  lanes[2] = c;
  lanes[3] = d;
}

/* vpmullq takes 3 cycles on AMD and 15 on Intel, where the scalar loop wins. */
int cmkd_xxh64_in_vectors(void) {
  static atomic_int known; /* 1: no, 2: yes. Kept for speed alone: any thread would find the same answer again */
  int answer = atomic_load_explicit(&known, memory_order_relaxed);
  if (answer) return answer - 1;
#if defined(__x86_64__)
  answer = cmkd_cpu_isa() >= CMKD_ISA_AVX512 && __builtin_cpu_is("amd");
#endif
  atomic_store_explicit(&known, answer + 1, memory_order_relaxed);
  return answer;
}

uint64_t cmkd_xxh64(const void *data, size_t size) {
  const uint8_t *p = data, *end = p + size;
  uint64_t hash = P5;
  if (size >= 32) {
    uint64_t lanes[4] = {P1 + P2, P2, 0, 0 - P1};
    (cmkd_xxh64_in_vectors() ? cmkd_xxh64_stripes_avx512 : stripes_scalar)(lanes, p, size / 32);
    p += size / 32 * 32;
    hash = rotl64(lanes[0], 1) + rotl64(lanes[1], 7) + rotl64(lanes[2], 12) + rotl64(lanes[3], 18);
    for (int i = 0; i < 4; i++)
      hash = xxh_merge(hash, lanes[i]);
  }
  hash += size;
  for (; end - p >= 8; p += 8)
    hash = rotl64(hash ^ xxh_round(0, load64(p)), 27) * P1 + P4;
  if (end - p >= 4) {
    hash = rotl64(hash ^ load32(p) * P1, 23) * P2 + P3;
    p += 4;
  }
  for (; p < end; p++)
    hash = rotl64(hash ^ *p * P5, 11) * P1;
  hash = (hash ^ hash >> 33) * P2;
  hash = (hash ^ hash >> 29) * P3;
  return hash ^ hash >> 32;
}

/* Sums of big-endian 16-bit words modulo 65535, where a non-zero sum that is 0 modulo 65535 is written 65535. 64-bit
 * accumulators need folding only once in 2^16 words. */
uint32_t cmkd_fletcher32(const void *data, size_t size) {
  const uint8_t *p = data;
  uint64_t a = 0, b = 0;
  for (size_t words = size / 2; words;) {
    size_t run = words < 65536 ? words : 65536;
    words -= run;
    for (; run; run--, p += 2) {
      a += (uint32_t)p[0] << 8 | p[1];
      b += a;
    }
    while (a >> 16)
      a = (a & 0xFFFF) + (a >> 16);
    while (b >> 16)
      b = (b & 0xFFFF) + (b >> 16);
  }
  if (size & 1) {
    a += (uint32_t)*p << 8;
    b += a;
    while (a >> 16)
      a = (a & 0xFFFF) + (a >> 16);
    while (b >> 16)
      b = (b & 0xFFFF) + (b >> 16);
  }
  return (uint32_t)(b << 16 | a);
}

static uint32_t rotl32(uint32_t x, int r) { return x << r | x >> (32 - r); }

uint32_t cmkd_lookup3(const void *data, size_t size) {
  const uint8_t *p = data;
  uint32_t a = 0xDEADBEEFu + (uint32_t)size, b = a, c = a;
  for (; size > 12; size -= 12, p += 12) {
    a += load32(p);
    b += load32(p + 4);
    c += load32(p + 8);
    a -= c;
    a ^= rotl32(c, 4);
    c += b;
    b -= a;
    b ^= rotl32(a, 6);
    a += c;
    c -= b;
    c ^= rotl32(b, 8);
    b += a;
    a -= c;
    a ^= rotl32(c, 16);
    c += b;
    b -= a;
    b ^= rotl32(a, 19);
    a += c;
    c -= b;
    c ^= rotl32(b, 4);
    b += a;
  }
  if (!size) return c;
  uint8_t tail[12] = {0};
  memcpy(tail, p, size);
  a += load32(tail);
  b += load32(tail + 4);
  c += load32(tail + 8);
  c ^= b;
  c -= rotl32(b, 14);
  a ^= c;
  a -= rotl32(c, 11);
  b ^= a;
  b -= rotl32(a, 25);
  c ^= b;
  c -= rotl32(b, 16);
  a ^= c;
  a -= rotl32(c, 4);
  b ^= a;
  b -= rotl32(a, 14);
  c ^= b;
  c -= rotl32(b, 24);
  return c;
}
