/* The contract of include/cmkd/views.h, in Philox draws. Every rule here is recorded in caches as CMKD_RNG_VERSION and
 * pinned by known answers in tests/test_views.c: a change that alters one number needs a new version string. Nothing
 * here allocates, keeps state, or touches pixels. */
#include "base/views.h"
#include "base/text.h"
#include "base/rng.h"
#include <string.h>

#define MAX_VARIANTS 162

static const char *const policy_names[] = {"none", "flip", "crop", "crop+flip", NULL};
static const uint32_t policy_variants[] = {1, 2, 81, MAX_VARIANTS};

const char *cmkd_policy_name(cmkd_policy policy) { return policy_names[policy & 3]; }
uint32_t cmkd_policy_variants(cmkd_policy policy) { return policy_variants[policy & 3]; }

cmkd_status cmkd_policy_parse(const char *name, cmkd_policy *out, cmkd_error *err) {
  for (int i = 0; policy_names[i]; i++)
    if (!strcmp(name, policy_names[i])) {
      *out = (cmkd_policy)i;
      return CMKD_OK;
    }
  if (!strcmp(name, "flip+crop")) {
    *out = CMKD_AUGMENT_CROP_FLIP;
    return CMKD_OK;
  }
  const char *near = cmkd_nearest(name, policy_names);
  return cmkd_fail(err, CMKD_ERR_USAGE,
                   "no augmentation is called '%.60s'%s%s%s; there are none, flip, crop, crop+flip", name,
                   near ? "; did you mean '" : "", near ? near : "", near ? "'" : "");
}

cmkd_status cmkd_views_parse(const char *text, uint32_t *out, cmkd_error *err) {
  uint32_t number = 0;
  const char *at = text;
  *out = 0;
  if (!strcmp(text, "all")) return CMKD_OK;
  while (*at >= '0' && *at <= '9' && number < CMKD_CACHE_MAX_VIEWS)
    number = 10 * number + (uint32_t)(*at++ - '0');
  if (*at || number < 1 || number >= CMKD_CACHE_MAX_VIEWS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--views %.40s: give a number from 1 to %d, or all", text,
                     CMKD_CACHE_MAX_VIEWS - 1);
  *out = number;
  return CMKD_OK;
}

cmkd_view_transform cmkd_view_transform_of(cmkd_policy policy, uint64_t seed) {
  cmkd_view_transform transform = {4, 4, 0};
  uint32_t variant = (uint32_t)(seed % cmkd_policy_variants(policy));
  if (policy & CMKD_AUGMENT_FLIP) {
    transform.flip = (int)(variant % 2);
    variant /= 2;
  }
  if (policy & CMKD_AUGMENT_CROP) {
    transform.dx = (int)(variant % 9);
    transform.dy = (int)(variant / 9);
  }
  return transform;
}

uint64_t cmkd_clean_seed(cmkd_policy policy) {
  uint64_t centre = policy & CMKD_AUGMENT_CROP ? 4 * 9 + 4 : 0;
  return policy & CMKD_AUGMENT_FLIP ? 2 * centre : centre;
}

static uint64_t first64(cmkd_philox block) { return block.word[0] | (uint64_t)block.word[1] << 32; }

/* Fisher-Yates from the back: the sample's own order of 0 .. variants-1. */
static uint32_t permute_variants(uint64_t cache_seed, uint64_t sample_id, cmkd_policy policy,
                                 uint8_t order[MAX_VARIANTS]) {
  uint32_t variants = cmkd_policy_variants(policy);
  cmkd_rng rng = cmkd_rng_start(cache_seed, CMKD_STREAM_VIEW_ALL, sample_id);
  for (uint32_t i = 0; i < variants; i++)
    order[i] = (uint8_t)i;
  for (uint32_t i = variants - 1; i > 0; i--) {
    uint32_t j = cmkd_rng_below(&rng, i + 1);
    uint8_t t = order[i];
    order[i] = order[j];
    order[j] = t;
  }
  return variants;
}

void cmkd_view_seeds(uint64_t cache_seed, uint64_t sample_id, uint32_t views, cmkd_policy policy, int all_variants,
                     uint64_t *out) {
  uint8_t order[MAX_VARIANTS];
  uint32_t variants = 0;
  if (policy != CMKD_AUGMENT_NONE && all_variants) variants = permute_variants(cache_seed, sample_id, policy, order);
  for (uint32_t v = 0; v < views; v++)
    if (policy == CMKD_AUGMENT_NONE)
      out[v] = cmkd_clean_seed(policy);
    else if (!all_variants)
      out[v] = first64(cmkd_philox_block(cache_seed, CMKD_STREAM_VIEW_SEED, sample_id, v));
    else
      out[v] = v < variants ? order[v] : cmkd_clean_seed(policy); /* past the last variant: the clean view */
}

uint64_t cmkd_view_seed(uint64_t cache_seed, uint64_t sample_id, uint32_t view, cmkd_policy policy, int all_variants) {
  if (policy == CMKD_AUGMENT_NONE) return cmkd_clean_seed(policy);
  if (!all_variants) return first64(cmkd_philox_block(cache_seed, CMKD_STREAM_VIEW_SEED, sample_id, view));
  uint8_t order[MAX_VARIANTS];
  return view < permute_variants(cache_seed, sample_id, policy, order) ? order[view] : cmkd_clean_seed(policy);
}

uint64_t cmkd_view_draw_seed(const cmkd_view_draw *draw, uint64_t sample_id, uint32_t view) {
  if (draw->clean_view && view == draw->views - 1) return cmkd_clean_seed(draw->policy);
  return cmkd_view_seed(draw->cache_seed, sample_id, view, draw->policy, draw->all_variants);
}

void cmkd_view_draw_seeds(const cmkd_view_draw *draw, uint64_t sample_id, uint64_t *out) {
  const uint32_t drawn = draw->views - (draw->clean_view ? 1 : 0);
  cmkd_view_seeds(draw->cache_seed, sample_id, drawn, draw->policy, draw->all_variants, out);
  if (draw->clean_view) out[drawn] = cmkd_clean_seed(draw->policy);
}

uint64_t cmkd_fresh_seed(uint64_t train_seed, uint32_t epoch, uint64_t sample_id) {
  return first64(cmkd_philox_block(train_seed, CMKD_STREAM_FRESH, sample_id, epoch));
}

/* pi(k) is where item k lands when 0 .. V-1 are shuffled: following one item needs no array, whatever V is. */
uint32_t cmkd_epoch_view(uint64_t train_seed, uint32_t epoch, uint32_t views) {
  if (views < 2) return 0;
  cmkd_rng rng = cmkd_rng_start(train_seed, CMKD_STREAM_EPOCH_VIEW, epoch / views);
  uint32_t place = epoch % views;
  for (uint32_t i = views - 1; i > 0; i--) {
    uint32_t j = cmkd_rng_below(&rng, i + 1);
    if (place == i)
      place = j;
    else if (place == j)
      place = i;
  }
  return place;
}

static void shuffle(cmkd_rng *rng, uint32_t *a, uint32_t n) {
  for (uint32_t i = n; i > 1; i--) {
    uint32_t j = cmkd_rng_below(rng, i), t = a[i - 1];
    a[i - 1] = a[j];
    a[j] = t;
  }
}

/* out[0 .. blocks) holds block numbers; spread each to its samples. Going backwards, a block's samples never land on a
 * number that is still to be read, since every block has at least one sample. */
static void spread_blocks(uint32_t *out, uint32_t n, uint32_t block, uint32_t blocks) {
  uint32_t at = n;
  for (uint32_t k = blocks; k-- > 0;) {
    uint32_t first = out[k] * block, size = n - first < block ? n - first : block;
    at -= size;
    for (uint32_t i = 0; i < size; i++)
      out[at + i] = first + i;
  }
}

/* out[i .. i+live) are the samples left of the window's blocks; what follows are whole blocks in their order. Draw one
 * of the live, and when its block is used up let the next block in. */
static void draw_from_window(cmkd_rng *rng, uint32_t *out, uint32_t n, uint32_t block) {
  uint32_t id[CMKD_SHUFFLE_WINDOW], left[CMKD_SHUFFLE_WINDOW], live = 0;
  for (int s = 0; s < CMKD_SHUFFLE_WINDOW; s++)
    left[s] = 0, id[s] = UINT32_MAX;
  for (uint32_t i = 0; i < n; i++) {
    for (int s = 0; s < CMKD_SHUFFLE_WINDOW; s++) {
      if (left[s] || live == n - i) continue;
      uint32_t first = out[i + live];
      id[s] = first / block;
      left[s] = n - first < block ? n - first : block;
      live += left[s];
    }
    uint32_t j = i + cmkd_rng_below(rng, live), t = out[i];
    out[i] = out[j];
    out[j] = t;
    live--;
    uint32_t drawn = out[i] / block;
    for (int s = 0; s < CMKD_SHUFFLE_WINDOW; s++)
      left[s] -= id[s] == drawn && left[s];
  }
}

void cmkd_epoch_order(uint64_t train_seed, uint32_t epoch, uint32_t n, uint32_t shuffle_block, uint32_t *out) {
  if (n == 0) return;
  cmkd_rng rng = cmkd_rng_start(train_seed, CMKD_STREAM_ORDER, epoch);
  uint32_t units = shuffle_block ? (n - 1) / shuffle_block + 1 : n;
  for (uint32_t i = 0; i < units; i++)
    out[i] = i;
  shuffle(&rng, out, units);
  if (!shuffle_block) return;
  spread_blocks(out, n, shuffle_block, units);
  draw_from_window(&rng, out, n, shuffle_block);
}
