/* XXH64's inner loop with its four lanes in one vector: the chain of a lane is then add, rotate, multiply (5 cycles a
 * stripe) and no longer eight multiplications through one port. Only where 64-bit vector multiplication is quick: see
 * hash.c. */
#include "formats/cache/hash.h"
#if defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

void cmkd_xxh64_stripes_avx512(uint64_t lanes[4], const uint8_t *p, size_t stripes) {
  __m256i acc = _mm256_loadu_si256((const __m256i *)(const void *)lanes);
  const __m256i p1 = _mm256_set1_epi64x((long long)0x9E3779B185EBCA87ull),
                p2 = _mm256_set1_epi64x((long long)0xC2B2AE3D27D4EB4Full);
  for (; stripes; stripes--, p += 32) {
    __m256i input = _mm256_mullo_epi64(_mm256_loadu_si256((const __m256i *)(const void *)p), p2);
    acc = _mm256_mullo_epi64(_mm256_rol_epi64(_mm256_add_epi64(acc, input), 31), p1);
  }
  _mm256_storeu_si256((__m256i *)(void *)lanes, acc);
}
#else
void cmkd_xxh64_stripes_avx512(uint64_t lanes[4], const uint8_t *p, size_t stripes) { /* never chosen */
  (void)lanes;
  (void)p;
  (void)stripes;
}
#endif
