/* Philox 4x32-10 (Salmon et al., SC 2011), counter-based: any number of a stream without the ones before it. */
#ifndef CMKD_BASE_RNG_H
#define CMKD_BASE_RNG_H
#include <stdint.h>

/* Streams keep uses of one seed apart: key = (seed, stream). Never renumber. */
enum cmkd_rng_stream {
  CMKD_STREAM_VIEW_SEED = 1,  /* cache seed S: seeds[i, v] */
  CMKD_STREAM_VIEW_ALL = 2,   /* cache seed S: permutation of all variants */
  CMKD_STREAM_EPOCH_VIEW = 3, /* training seed R: order of views */
  CMKD_STREAM_ORDER = 4,      /* training seed R: order of samples */
  CMKD_STREAM_INIT = 5,       /* training seed R: initial weights */
  CMKD_STREAM_FRESH = 6,      /* training seed R: augmentation without a cache */
  CMKD_STREAM_VAL = 7,        /* training seed R: the held-out samples of --val */
  CMKD_STREAM_TEST = 100      /* tests and benchmarks */
};

typedef struct cmkd_philox {
  uint32_t word[4];
} cmkd_philox;
/* One block of 128 random bits. The 64-bit seed and the 32-bit stream are folded into Philox's two 32-bit key words as
 * (low(seed) , high(seed) ^ stream * 0x9E3779B9); counter = (low a, high a, low b, high b). */
cmkd_philox cmkd_philox_block(uint64_t seed, uint32_t stream, uint64_t a, uint64_t b);

/* A sequential reader over counters (a, 0), (a, 1), ... for shuffles and initialisation. */
typedef struct cmkd_rng {
  uint64_t seed, a, b;
  uint32_t stream;
  int used;
  cmkd_philox block;
} cmkd_rng;
cmkd_rng cmkd_rng_start(uint64_t seed, uint32_t stream, uint64_t a);
uint32_t cmkd_rng_u32(cmkd_rng *rng);
uint64_t cmkd_rng_u64(cmkd_rng *rng);
uint32_t cmkd_rng_below(cmkd_rng *rng, uint32_t bound); /* uniform in 0..bound-1, unbiased (Lemire 2019); bound > 0 */
double cmkd_rng_uniform(cmkd_rng *rng);                 /* [0, 1), 53 bits */
double cmkd_rng_normal(cmkd_rng *rng);                  /* N(0,1), Box-Muller */
#endif
