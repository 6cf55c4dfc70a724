/* The container of PyTorch checkpoints before torch 1.6. See torch_legacy.h. */
#include "formats/weights/torch_legacy.h"
#include "base/bytes.h"
#include <stdlib.h>
#include <string.h>

typedef struct stream {
  const uint8_t *bytes;
  size_t size, at;
} stream;
/* A storage and where its items are in the file. */
typedef struct located {
  const cmkd_pk_storage *storage;
  uint64_t offset;
  int found;
} located;

static cmkd_status next_pickle(cmkd_torch_loader *l, stream *s, cmkd_pickle **out) {
  CMKD_TRY(cmkd_pickle_load(s->bytes + s->at, s->size - s->at, l->file, out, l->err));
  s->at += (*out)->used;
  return CMKD_OK;
}

static const cmkd_pk_value *root_of(const cmkd_pickle *p) { return &p->values[p->root]; }

static int is_magic(const cmkd_pk_value *v) { /* the number 0x1950a86a20f9469cfc6c */
  static const uint8_t magic[] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
  return v->kind == CMKD_PK_BIG && v->length == sizeof magic && !memcmp(v->as.text, magic, sizeof magic);
}

static int is_version(const cmkd_pk_value *v) { return v->kind == CMKD_PK_INT && v->as.integer == 1001; }

static int is_true(const cmkd_pk_value *v) { return v && v->kind == CMKD_PK_BOOL && v->as.integer == 1; }

/* The first three pickles: magic number, version, and a dict that says little_endian. */
static cmkd_status read_preamble(cmkd_torch_loader *l, stream *s) {
  cmkd_pickle *p;
  CMKD_TRY(next_pickle(l, s, &p));
  int good = is_magic(root_of(p));
  cmkd_pickle_free(p);
  if (!good)
    return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                     "%s: a pickle, but not one that torch.save wrote; save model.state_dict() with torch.save",
                     l->file);
  CMKD_TRY(next_pickle(l, s, &p));
  good = is_version(root_of(p));
  cmkd_pickle_free(p);
  if (!good)
    return cmkd_fail(l->err, CMKD_ERR_UNSUPPORTED,
                     "%s: an unknown version of PyTorch's legacy format; save it again with a newer PyTorch", l->file);
  CMKD_TRY(next_pickle(l, s, &p));
  good = is_true(cmkd_pickle_get(p, root_of(p), "little_endian"));
  cmkd_pickle_free(p);
  if (!good)
    return cmkd_fail(l->err, CMKD_ERR_UNSUPPORTED,
                     "%s: its byte order is not little; save it again on an ordinary machine", l->file);
  return CMKD_OK;
}

static int by_key(const void *a, const void *b) {
  const located *x = a, *y = b;
  int order = cmkd_torch_compare_keys(x->storage, y->storage);
  return order ? order : (x->storage > y->storage) - (x->storage < y->storage);
}

/* One entry for each key that the object's pickle mentions, sorted; a key with two types or sizes is refused. */
static cmkd_status list_storages(cmkd_torch_loader *l, located *storages, uint32_t *count) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < l->pickle->storage_count; i++)
    storages[i] = (located){&l->pickle->storages[i], 0, 0};
  qsort(storages, l->pickle->storage_count, sizeof *storages, by_key);
  for (uint32_t i = 0; i < l->pickle->storage_count; i++) {
    const cmkd_pk_storage *a = kept ? storages[kept - 1].storage : NULL, *b = storages[i].storage;
    if (!a || cmkd_torch_compare_keys(a, b))
      storages[kept++] = storages[i];
    else if (a->dtype != b->dtype || a->numel != b->numel)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: a storage is named with two types or sizes; the file is damaged",
                       l->file);
  }
  *count = kept;
  return CMKD_OK;
}

static located *find_storage(located *storages, uint32_t count, const uint8_t *key, uint32_t length) {
  uint32_t low = 0, high = count;
  cmkd_pk_storage wanted = {.key = key, .key_length = length};
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    int order = cmkd_torch_compare_keys(&wanted, storages[middle].storage);
    if (order == 0) return &storages[middle];
    if (order < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return NULL;
}

/* Walks the raw storages in the order of `keys` and notes where each lies. */
static cmkd_status locate_storages(cmkd_torch_loader *l, stream *s, const cmkd_pickle *keys, located *storages,
                                   uint32_t count) {
  const cmkd_pk_value *list = root_of(keys);
  if (list->kind != CMKD_PK_LIST)
    return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                     "%s: damaged: no list of storages where one should be; fetch the file again", l->file);
  for (uint32_t i = 0; i < list->length; i++) {
    const cmkd_pk_value *key = &keys->values[list->as.item[i]];
    located *p = key->kind == CMKD_PK_STRING ? find_storage(storages, count, key->as.text, key->length) : NULL;
    if (!p || p->found)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                       "%s: damaged: a storage that nothing refers to, or twice the same; fetch the file again",
                       l->file);
    uint64_t item = cmkd_dtype_size(p->storage->dtype);
    if (s->size - s->at < 8)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: truncated before storage %u of %u; fetch the file again", l->file,
                       i + 1, list->length);
    uint64_t numel = cmkd_load_little(s->bytes + s->at, 8);
    s->at += 8;
    if (numel != (uint64_t)p->storage->numel)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                       "%s: damaged: a storage of %llu items where its tensor says %lld; fetch the file again", l->file,
                       (unsigned long long)numel, (long long)p->storage->numel);
    if (numel > (s->size - s->at) / item)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: truncated in storage %u of %u; fetch the file again", l->file,
                       i + 1, list->length);
    p->found = 1;
    p->offset = s->at;
    s->at += (size_t)(numel * item);
  }
  if (s->at != s->size)
    return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: %zu bytes too many behind the last storage; fetch the file again",
                     l->file, s->size - s->at);
  return CMKD_OK;
}

static cmkd_status copy_from_stream(cmkd_torch_loader *l, stream *s) {
  uint32_t count = 0;
  cmkd_pickle *keys = NULL;
  located *storages = calloc((size_t)l->pickle->storage_count + 1, sizeof *storages);
  if (!storages) return cmkd_fail(l->err, CMKD_ERR_MEMORY, "%s: out of memory", l->file);
  cmkd_status status = list_storages(l, storages, &count);
  if (status == CMKD_OK) status = next_pickle(l, s, &keys);
  if (status == CMKD_OK) status = locate_storages(l, s, keys, storages, count);
  for (int i = 0; i < l->count && status == CMKD_OK; i++) {
    const cmkd_torch_tensor *k = &l->tensor[i];
    const located *p = find_storage(storages, count, k->storage->key, k->storage->key_length);
    if (!p || !p->found)
      status = cmkd_torch_missing(l, k);
    else
      cmkd_torch_copy(l, k, s->bytes + p->offset);
  }
  cmkd_pickle_free(keys);
  free(storages);
  return status;
}

cmkd_status cmkd_torch_legacy_parse(cmkd_torch_loader *l, const uint8_t *bytes, size_t size) {
  stream s = {bytes, size, 0};
  cmkd_pickle *object = NULL;
  CMKD_TRY(read_preamble(l, &s));
  cmkd_status status = next_pickle(l, &s, &object);
  l->pickle = object;
  if (status == CMKD_OK) status = cmkd_torch_select(l, size);
  if (status == CMKD_OK) status = copy_from_stream(l, &s);
  cmkd_pickle_free(object);
  return status;
}
