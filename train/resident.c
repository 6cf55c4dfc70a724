/* Logits on the device. See resident.h. */
#include "train/resident.h"
#include <stdlib.h>

struct cmkd_resident {
  const cmkd_backend_table *table;
  cmkd_cache *cache;
  cmkd_be_rows *rows; /* (views * samples, classes) */
  uint8_t *loaded;    /* (views) */
};

cmkd_status cmkd_resident_open(const cmkd_backend_table *table, cmkd_backend *backend, cmkd_cache *cache,
                               cmkd_resident **out, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  cmkd_be_rows *rows = NULL;
  cmkd_error why;
  *out = NULL;
  if (!table->rows_create) return CMKD_OK;
  cmkd_status status =
      table->rows_create(backend, info->identity.codec, info->samples * info->views, (int)info->classes, &rows, &why);
  if (status == CMKD_ERR_MEMORY || status == CMKD_ERR_UNSUPPORTED) return CMKD_OK; /* streamed, then */
  if (status != CMKD_OK) return cmkd_fail(err, status, "%s", why.message);
  cmkd_resident *r = calloc(1, sizeof *r);
  uint8_t *loaded = calloc(info->views, 1);
  if (!r || !loaded) {
    free(r);
    free(loaded);
    table->rows_free(rows);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the marks of %u views", info->views);
  }
  *r = (cmkd_resident){.table = table, .cache = cache, .rows = rows, .loaded = loaded};
  *out = r;
  return CMKD_OK;
}

void cmkd_resident_close(cmkd_resident *r) {
  if (!r) return;
  r->table->rows_free(r->rows);
  free(r->loaded);
  free(r);
}

cmkd_status cmkd_resident_load(cmkd_resident *r, uint32_t view, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(r->cache);
  const uint64_t n = info->samples;
  const size_t row = (size_t)info->classes * (size_t)cmkd_cache_logit_bytes(r->cache);
  if (r->loaded[view]) return CMKD_OK;
  uint8_t *items = malloc((size_t)n * (row + 4)); /* the rows, then two halves of each */
  if (!items) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the logits of one view");
  uint16_t *halves = (uint16_t *)(void *)(items + (size_t)n * row);
  cmkd_status status = cmkd_cache_read_items(r->cache, view, 0, n, items, halves, halves + n, err);
  if (status == CMKD_OK) status = r->table->rows_write(r->rows, (uint64_t)view * n, n, items, halves, halves + n, err);
  free(items);
  r->loaded[view] = status == CMKD_OK;
  return status;
}

const cmkd_be_rows *cmkd_resident_rows(const cmkd_resident *r) { return r->rows; }
