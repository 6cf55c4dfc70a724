#include "base/rng.h"
#include <math.h>

cmkd_philox cmkd_philox_block(uint64_t seed, uint32_t stream, uint64_t a, uint64_t b) {
  uint32_t c0 = (uint32_t)a, c1 = (uint32_t)(a >> 32), c2 = (uint32_t)b, c3 = (uint32_t)(b >> 32);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32) ^ stream * 0x9E3779B9u;
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u; /* Weyl sequences: golden ratio, sqrt(3) - 1 */
    k1 += 0xBB67AE85u;
  }
  return (cmkd_philox){{c0, c1, c2, c3}};
}

cmkd_rng cmkd_rng_start(uint64_t seed, uint32_t stream, uint64_t a) {
  return (cmkd_rng){.seed = seed, .a = a, .b = 0, .stream = stream, .used = 4};
}

uint32_t cmkd_rng_u32(cmkd_rng *rng) {
  if (rng->used == 4) {
    rng->block = cmkd_philox_block(rng->seed, rng->stream, rng->a, rng->b++);
    rng->used = 0;
  }
  return rng->block.word[rng->used++];
}

uint64_t cmkd_rng_u64(cmkd_rng *rng) {
  uint64_t low = cmkd_rng_u32(rng);
  return low | (uint64_t)cmkd_rng_u32(rng) << 32;
}

uint32_t cmkd_rng_below(cmkd_rng *rng, uint32_t bound) {
  uint64_t product = (uint64_t)cmkd_rng_u32(rng) * bound;
  if ((uint32_t)product < bound) {
    uint32_t threshold = (0u - bound) % bound; /* 2^32 mod bound low parts would be drawn once too often */
    while ((uint32_t)product < threshold)
      product = (uint64_t)cmkd_rng_u32(rng) * bound;
  }
  return (uint32_t)(product >> 32);
}

double cmkd_rng_uniform(cmkd_rng *rng) { return (double)(cmkd_rng_u64(rng) >> 11) * 0x1p-53; }

double cmkd_rng_normal(cmkd_rng *rng) {
  double radius = sqrt(-2.0 * log(1.0 - cmkd_rng_uniform(rng))); /* 1 - u is never 0 */
  return radius * cos(6.283185307179586476925 * cmkd_rng_uniform(rng));
}
