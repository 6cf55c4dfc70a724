/* Seeds, views, order: the rules that make a cache replayable, and training from a cache equal to training with the
 * teacher beside it. Everything here is a function of its arguments, allocates nothing and may be called from any
 * thread. docs/architecture.md says who asks for each; docs/examples/views.c prints them; cmkd_dataset_replay
 * (cmkd/dataset.h) applies them to pixels. */
#ifndef CMKD_VIEWS_H
#define CMKD_VIEWS_H
#include <stdint.h>
#include "cmkd/status.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Recorded in caches; changes whenever any function below would answer differently. */
#define CMKD_RNG_VERSION "philox4x32-10/1"

/* Augmentation policies, two flags. `crop`: zero padding 4, crop back to the image's own size; `flip`: horizontal. A
 * value that is none of these is undefined behaviour. */
typedef enum cmkd_policy {
  CMKD_AUGMENT_NONE = 0,
  CMKD_AUGMENT_FLIP = 1,
  CMKD_AUGMENT_CROP = 2,
  CMKD_AUGMENT_CROP_FLIP = 3
} cmkd_policy;
/* "none", "flip", "crop", "crop+flip". Static storage. */
CMKD_API const char *cmkd_policy_name(cmkd_policy policy);
/* The policy of that name; an unknown one fails with CMKD_ERR_USAGE and suggests the nearest. */
CMKD_API cmkd_status cmkd_policy_parse(const char *name, cmkd_policy *out, cmkd_error *err);
/* How many different views of an image there are: 1, 2, 81, 162. */
CMKD_API uint32_t cmkd_policy_variants(cmkd_policy policy);

/* Views of an image that one cache can hold, a clean one among them. */
#define CMKD_CACHE_MAX_VIEWS 65536
/* The word behind --views in every program: the number of augmented views of an image, 1 to CMKD_CACHE_MAX_VIEWS - 1,
 * or "all", every variant of the policy: *out is 0 then. Anything else is CMKD_ERR_USAGE. */
CMKD_API cmkd_status cmkd_views_parse(const char *text, uint32_t *out, cmkd_error *err);

/* The crop and the mirroring that `seed` stands for under `policy`.
 * crop+flip: variant = seed mod 162; flip = variant % 2; dx = variant / 2 % 9; dy = variant / 18. crop: the same
 * without the flip digit (mod 81: dx = variant % 9, dy = variant / 9). flip: variant = seed mod 2. Output pixel (y, x)
 * of a crop is input pixel (y + dy - 4, x + dx - 4), 0 outside; the flip comes after the crop. */
typedef struct cmkd_view_transform {
  int dy, dx; /* 0 to 8; 4 is the centre */
  int flip;   /* 1: mirrored */
} cmkd_view_transform;
CMKD_API cmkd_view_transform cmkd_view_transform_of(cmkd_policy policy, uint64_t seed);

/* The seed that leaves an image as it is under `policy` (80, 40, 0, 0 for crop+flip, crop, flip, none): the seed of a
 * clean view, so that pixels follow from seed and policy with no special case. */
CMKD_API uint64_t cmkd_clean_seed(cmkd_policy policy);

/* seeds[i, v] of a cache: the first 64 bits of Philox 4x32-10 with key (S, stream) and counter (sample_id, view).
 * With all_variants, seeds[i, .] is instead a Philox-keyed permutation of 0 .. variants-1. Under policy
 * none, and past the last variant: the clean seed. */
CMKD_API uint64_t cmkd_view_seed(uint64_t cache_seed, uint64_t sample_id, uint32_t view, cmkd_policy policy,
                                 int all_variants);
/* The same for all views of one sample: out (views). */
CMKD_API void cmkd_view_seeds(uint64_t cache_seed, uint64_t sample_id, uint32_t views, cmkd_policy policy,
                              int all_variants, uint64_t *out);

/* Augmentation seed for training without a cache or teacher: a new pseudo-random one for every (epoch, sample); equal
 * views occur by chance only. */
CMKD_API uint64_t cmkd_fresh_seed(uint64_t train_seed, uint32_t epoch, uint64_t sample_id);

/* The view that all samples of `epoch` (from 0) use: pi(epoch mod V), pi drawn from (train_seed, epoch div V). */
CMKD_API uint32_t cmkd_epoch_view(uint64_t train_seed, uint32_t epoch, uint32_t views);

/* Sample order of an epoch: a permutation of 0..n-1, which number the samples trained on in rising order of position.
 * shuffle_block 0: a full permutation. B > 0: blocks of B consecutive samples are permuted, then a sliding window of
 * CMKD_SHUFFLE_WINDOW blocks is drawn from, so that a reader holds that many blocks and no more. out: n numbers. */
#define CMKD_SHUFFLE_WINDOW 8
CMKD_API void cmkd_epoch_order(uint64_t train_seed, uint32_t epoch, uint32_t n, uint32_t shuffle_block, uint32_t *out);

#ifdef __cplusplus
}
#endif
#endif
