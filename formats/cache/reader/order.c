#include "formats/cache/reader/order.h"
#include <stdlib.h>
#include <string.h>

#define UNUSED UINT32_MAX
#define LONG_RUN 4   /* rows in a row that are worth decoding straight from their chunk */
#define SAMPLE 4096u /* rows at the front that tell a shuffle of all samples from one of parts of them */

static cmkd_divider divider_of(uint32_t d) { return (cmkd_divider){d > 1 ? UINT64_MAX / d + 1 : 0, d}; }

static cmkd_status number_chunks(cmkd_order_plan *p, cmkd_error *err) {
  const cmkd_cache *cache = p->cache;
  const cmkd_cache_config *config = &cache->master.config;
  for (uint32_t k = 0; k < config->shards; k++)
    p->chunk_count += cache->shards[k].meta.tables[p->layout].chunks_per_view;
  p->first_chunk = malloc(config->shards * sizeof *p->first_chunk);
  p->chunks = malloc(p->chunk_count * sizeof *p->chunks);
  p->schedule = malloc((size_t)p->chunk_count * 2 * sizeof *p->schedule);
  if (!p->first_chunk || !p->chunks || !p->schedule)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to plan the order", cache->path);
  p->retire = p->schedule + p->chunk_count;
  for (uint32_t k = 0, g = 0; k < config->shards; k++) {
    p->first_chunk[k] = g;
    for (uint32_t number = 0; number < cache->shards[k].meta.tables[p->layout].chunks_per_view; number++)
      p->chunks[g++] = (cmkd_order_chunk){k, number, UNUSED, UNUSED};
  }
  p->last_shard = config->shards - 1;
  p->by_shard = divider_of(config->shard_samples);
  p->by_chunk = divider_of(cmkd_cache_layout_at(cache, p->layout)->array.chunk_samples);
  p->by_last_chunk = divider_of(cache->shards[p->last_shard].meta.tables[p->layout].chunk_samples);
  return CMKD_OK;
}

static cmkd_status out_of_range(const cmkd_order_plan *p, uint32_t i, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_USAGE, "%s: row %u of the order asks for sample %u; there are %llu", p->cache->path, i,
                   p->order[i], (unsigned long long)p->cache->info.samples);
}

/* Do the first rows reach half of the chunks that they could? */
static cmkd_status find_reach(cmkd_order_plan *p, int *far, cmkd_error *err) {
  uint32_t rows = p->n < SAMPLE ? p->n : SAMPLE, most = rows < p->chunk_count ? rows : p->chunk_count, reached = 0;
  for (uint32_t i = 0; i < rows; i++) {
    if (p->order[i] >= p->cache->info.samples) return out_of_range(p, i, err);
    cmkd_order_chunk *chunk = p->chunks + cmkd_order_locate(p, p->order[i]).chunk;
    reached += chunk->first == UNUSED;
    chunk->first = 0;
  }
  for (uint32_t i = 0; i < rows; i++)
    p->chunks[cmkd_order_locate(p, p->order[i]).chunk].first = UNUSED;
  *far = most > 1 && reached > most / 2;
  return CMKD_OK;
}

/* Fills `position` and the schedule, the chunks as they lie on disk; leaves position NULL when a sample comes twice. */
static cmkd_status invert(cmkd_order_plan *p, cmkd_error *err) {
  const cmkd_cache *cache = p->cache;
  uint32_t *position = malloc(cache->info.samples * sizeof *position);
  if (!position) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to plan the order", cache->path);
  memset(position, 0xFF, cache->info.samples * sizeof *position);
  for (uint32_t i = 0; i < p->n; i++) {
    if (p->order[i] >= cache->info.samples) {
      free(position);
      return out_of_range(p, i, err);
    }
    if (position[p->order[i]] != UINT32_MAX) {
      free(position);
      return CMKD_OK;
    }
    position[p->order[i]] = i;
  }
  for (uint32_t g = 0; g < p->chunk_count; g++) {
    const cmkd_shard *shard = cache->shards + p->chunks[g].shard;
    const uint32_t whole = shard->meta.tables[p->layout].chunk_samples;
    uint32_t start = p->chunks[g].number * whole, left = shard->meta.samples - start,
             rows = left < whole ? left : whole, i = 0;
    while (i < rows && position[shard->meta.first + start + i] == UINT32_MAX)
      i++;
    if (i < rows) p->schedule[p->scheduled++] = g;
  }
  p->position = position;
  return CMKD_OK;
}

/* First and last uses. *jumping: rows outside long runs. */
static cmkd_status find_uses(cmkd_order_plan *p, uint32_t *jumping, cmkd_error *err) {
  uint64_t samples = p->cache->info.samples;
  for (uint32_t i = 0, run; i < p->n; i += run) {
    if (p->order[i] >= samples) return out_of_range(p, i, err);
    cmkd_row_location at = cmkd_order_locate(p, p->order[i]);
    cmkd_order_chunk *chunk = p->chunks + at.chunk;
    run = cmkd_order_run(p, p->order + i, p->n - i, at);
    if (chunk->first == UNUSED) {
      chunk->first = i;
      p->schedule[p->scheduled++] = at.chunk;
    }
    chunk->last = i + run - 1;
    if (run < LONG_RUN) *jumping += run;
  }
  return CMKD_OK;
}

typedef struct use {
  uint32_t row, chunk;
} use;
static int by_row(const void *a, const void *b) {
  uint32_t x = ((const use *)a)->row, y = ((const use *)b)->row;
  return x < y ? -1 : x > y;
}

static cmkd_status sort_last_uses(cmkd_order_plan *p, cmkd_error *err) {
  use *uses = malloc(((size_t)p->scheduled + 1) * sizeof *uses);
  if (!uses) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to plan the order", p->cache->path);
  for (uint32_t i = 0; i < p->scheduled; i++)
    uses[i] = (use){p->chunks[p->schedule[i]].last, p->schedule[i]};
  qsort(uses, p->scheduled, sizeof *uses, by_row);
  for (uint32_t i = 0; i < p->scheduled; i++)
    p->retire[i] = uses[i].chunk;
  free(uses);
  return CMKD_OK;
}

/* Most chunks in use at one time when rows are delivered `step` at a time. */
static uint32_t most_live(const cmkd_order_plan *p, uint32_t step) {
  uint32_t most = 0;
  for (uint32_t i = 0, ended = 0; i < p->scheduled; i++) {
    uint32_t now = p->chunks[p->schedule[i]].first / step;
    while (ended < p->scheduled && p->chunks[p->retire[ended]].last / step < now)
      ended++;
    if (i + 1 - ended > most) most = i + 1 - ended;
  }
  return most;
}

static cmkd_status cut(cmkd_order_plan *p, cmkd_error *err) {
  p->pieces = (p->n - 1) / p->piece_rows + 1;
  p->needs = calloc(p->pieces, sizeof *p->needs);
  if (!p->needs) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to plan the order", p->cache->path);
  if (p->position) p->needs[0] = p->scheduled;
  for (uint32_t i = 0; !p->position && i < p->scheduled; i++)
    p->needs[p->chunks[p->schedule[i]].first / p->piece_rows] = i + 1;
  for (uint32_t i = 1; i < p->pieces; i++)
    if (!p->needs[i]) p->needs[i] = p->needs[i - 1];
  return CMKD_OK;
}

cmkd_status cmkd_order_plan_make(cmkd_order_plan *p, const cmkd_cache *cache, uint32_t layout, const uint32_t *order,
                                 uint32_t n, const cmkd_order_limits *limits, cmkd_error *err) {
  uint32_t jumping = 0;
  int far = 0;
  *p = (cmkd_order_plan){.cache = cache, .layout = layout, .order = order, .n = n, .piece_rows = limits->piece_rows};
  CMKD_TRY(number_chunks(p, err));
  CMKD_TRY(find_reach(p, &far, err));
  if (far && n <= limits->rows) CMKD_TRY(invert(p, err));
  if (p->position) return cut(p, err);
  CMKD_TRY(find_uses(p, &jumping, err));
  CMKD_TRY(sort_last_uses(p, err));
  p->live = most_live(p, 1);
  if (jumping <= n / 2) return CMKD_OK;
  uint32_t live = most_live(p, p->piece_rows);
  if (live > limits->live) return CMKD_OK;
  p->live = live;
  return cut(p, err);
}

void cmkd_order_plan_free(cmkd_order_plan *p) {
  free(p->first_chunk);
  free(p->chunks);
  free(p->schedule);
  free(p->needs);
  free(p->position);
  *p = (cmkd_order_plan){0};
}
