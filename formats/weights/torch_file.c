/* PyTorch checkpoints: the zip container (torch >= 1.6) and the legacy stream before it. The pickle in either is read
 * by formats/weights/pickle.c, which can't run anything. State dicts are found bare or under the usual keys; `module.`
 * prefixes of data-parallel wrappers are dropped. Will not do: whole pickled modules, TorchScript, tar files of 2016,
 * big-endian files. */
#include "formats/weights/containers.h"
#include "formats/weights/pickle.h"
#include "formats/weights/zipfile.h"
#include <stdlib.h>
#include <string.h>

/* Tensors may share storages and entries may be deflated, so the numbers can be more than the file; not without bound.
 */
#define MEMORY_LIMIT(size) ((64ull << 20) + 8 * (uint64_t)(size))

/* A tensor of the state dict, and the storage that it looks at. */
typedef struct picked {
  const uint8_t *name;
  uint32_t name_length;
  const cmkd_pk_tensor *tensor;
  const cmkd_pk_storage *storage;
  int slot; /* in the order of the file */
} picked;
typedef struct loader {
  const char *file;
  const cmkd_pickle *p;
  picked *picked;
  int count;
  cmkd_weights *out;
  cmkd_error *err;
} loader;

int cmkd_torch_sniff(const uint8_t *bytes, size_t size) {
  if (size > 8 && bytes[8] == '{') return 0; /* safetensors whose header length looks like a magic number */
  if (size >= 4 && !memcmp(bytes, "PK\3\4", 4)) return 1;
  return size >= 2 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5;
}

/* ---- which dict is the state dict, and what is in it ---- */

static int count_tensors(const cmkd_pickle *p, const cmkd_pk_value *dict) {
  int count = 0;
  if (!dict || dict->kind != CMKD_PK_DICT) return 0;
  for (uint32_t i = 0; i < dict->length; i += 2)
    count +=
        p->values[dict->as.item[i]].kind == CMKD_PK_STRING && p->values[dict->as.item[i + 1]].kind == CMKD_PK_TENSOR;
  return count;
}

/* A key that training scripts use wins over tensors beside it (a best accuracy is often one). */
static const cmkd_pk_value *find_state_dict(const cmkd_pickle *p) {
  static const char *const keys[] = {"state_dict",     "model_state_dict", "model",  "net",
                                     "state_dict_ema", "params",           "weights"};
  const cmkd_pk_value *dict = &p->values[p->root];
  for (int depth = 0; depth < 3; depth++) {
    const cmkd_pk_value *inner = NULL;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
      const cmkd_pk_value *below = cmkd_pickle_get(p, dict, keys[i]);
      if (count_tensors(p, below)) return below;
      if (!inner && below && below->kind == CMKD_PK_DICT) inner = below;
    }
    if (count_tensors(p, dict)) return dict;
    if (!inner) return NULL;
    dict = inner;
  }
  return NULL;
}

static int by_picked_name(const void *a, const void *b) {
  const picked *x = a, *y = b;
  uint32_t n = x->name_length < y->name_length ? x->name_length : y->name_length;
  int order = memcmp(x->name, y->name, n);
  if (!order) order = (x->name_length > y->name_length) - (x->name_length < y->name_length);
  return order ? order : x->slot - y->slot;
}

/* A prefix that every name has comes from a wrapper. */
static void drop_prefix(loader *l, const char *prefix) {
  uint32_t n = (uint32_t)strlen(prefix);
  for (int i = 0; i < l->count; i++)
    if (l->picked[i].name_length <= n || memcmp(l->picked[i].name, prefix, n)) return;
  for (int i = 0; i < l->count; i++)
    l->picked[i].name += n, l->picked[i].name_length -= n;
}

static cmkd_status pick_tensors(loader *l) {
  const cmkd_pickle *p = l->p;
  const cmkd_pk_value *dict = find_state_dict(p);
  if (!dict)
    return cmkd_fail(
        l->err, CMKD_ERR_FORMAT,
        "%s: no state dict of tensors in it, neither bare nor under state_dict, model or net; save model.state_dict()",
        l->file);
  l->picked = calloc((size_t)count_tensors(p, dict), sizeof *l->picked);
  if (!l->picked) return cmkd_fail(l->err, CMKD_ERR_MEMORY, "%s: out of memory", l->file);
  for (uint32_t i = 0; i < dict->length; i += 2) {
    const cmkd_pk_value *key = &p->values[dict->as.item[i]], *item = &p->values[dict->as.item[i + 1]];
    if (key->kind != CMKD_PK_STRING || item->kind != CMKD_PK_TENSOR) continue; /* counters and the like */
    const cmkd_pk_tensor *t = &p->tensors[item->as.index];
    l->picked[l->count] = (picked){key->as.text, key->length, t, &p->storages[t->storage], l->count};
    l->count++;
  }
  drop_prefix(l, "_orig_mod.");
  drop_prefix(l, "module.");
  return CMKD_OK;
}

/* Every index that size, stride and offset can reach lies in the storage's window, and there are no more numbers than
 * it has. */
static cmkd_status check_reach(loader *l, const picked *k, const cmkd_tensor *t) {
  int64_t last = k->tensor->offset;
  int overflow = 0;
  for (int d = 0; d < t->dims && t->count; d++) {
    int64_t span;
    overflow |= __builtin_mul_overflow(t->shape[d] - 1, k->tensor->stride[d], &span) ||
                __builtin_add_overflow(last, span, &last);
  }
  if (t->count && (overflow || last >= k->storage->view_numel))
    return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                     "%s: tensor %.200s reaches outside of its storage of %lld numbers; the file is damaged", l->file,
                     t->name, (long long)k->storage->view_numel);
  if (t->count > k->storage->view_numel)
    return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: tensor %.200s has more numbers than its storage; save it contiguous",
                     l->file, t->name);
  return CMKD_OK;
}

static cmkd_status describe_tensors(loader *l, uint64_t limit) {
  cmkd_weights *w = l->out;
  w->tensors = calloc((size_t)l->count + 1, sizeof *w->tensors);
  if (!w->tensors) return cmkd_fail(l->err, CMKD_ERR_MEMORY, "%s: out of memory", l->file);
  for (int i = 0; i < l->count; i++) {
    const picked *k = &l->picked[i];
    cmkd_tensor *t = &w->tensors[w->count++];
    if (!k->name_length || k->name_length > CMKD_MAX_TENSOR_NAME || memchr(k->name, 0, k->name_length))
      return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                       "%s: a tensor's name is empty, longer than %d bytes or holds a zero byte", l->file,
                       CMKD_MAX_TENSOR_NAME);
    if (!(t->name = strndup((const char *)k->name, k->name_length)))
      return cmkd_fail(l->err, CMKD_ERR_MEMORY, "%s: out of memory", l->file);
    t->dtype = k->storage->dtype;
    t->dims = k->tensor->dims;
    memcpy(t->shape, k->tensor->size, sizeof t->shape);
    CMKD_TRY(cmkd_tensor_measure(t, l->file, l->err));
    CMKD_TRY(check_reach(l, k, t));
  }
  qsort(l->picked, (size_t)l->count, sizeof *l->picked, by_picked_name);
  for (int i = 1; i < l->count; i++)
    if (l->picked[i].name_length == l->picked[i - 1].name_length &&
        !memcmp(l->picked[i].name, l->picked[i - 1].name, l->picked[i].name_length))
      return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: two tensors are called %.200s", l->file,
                       w->tensors[l->picked[i].slot].name);
  return cmkd_weights_reserve(w, limit, l->file, l->err);
}

/* ---- numbers ---- */

/* Copies one tensor out of its storage's bytes, row-major whatever its strides. All indices were checked. */
static void copy_tensor(const picked *k, const cmkd_tensor *t, const uint8_t *storage) {
  size_t item = cmkd_dtype_size(t->dtype);
  int64_t dense = 1, index[CMKD_MAX_DIMS] = {0};
  int contiguous = 1;
  if (!t->count) return;
  const uint8_t *from = storage + (uint64_t)(k->storage->view_offset + k->tensor->offset) * item;
  uint8_t *to = (uint8_t *)t->data;
  for (int d = t->dims - 1; d >= 0; d--) {
    contiguous &= t->shape[d] == 1 || k->tensor->stride[d] == dense;
    dense *= t->shape[d];
  }
  if (contiguous) {
    memcpy(to, from, (size_t)t->count * item);
    return;
  }
  for (int64_t i = 0; i < t->count; i++, to += item) {
    memcpy(to, from, item);
    for (int d = t->dims - 1; d >= 0; d--) {
      int64_t step = t->shape[d] > 1 ? k->tensor->stride[d] * (int64_t)item
                                     : 0; /* the stride of a single item was never checked */
      if (++index[d] < t->shape[d]) {
        from += step;
        break;
      }
      from -= (t->shape[d] - 1) * step;
      index[d] = 0;
    }
  }
}

static int compare_keys(const cmkd_pk_storage *x, const cmkd_pk_storage *y) {
  uint32_t n = x->key_length < y->key_length ? x->key_length : y->key_length;
  int order = memcmp(x->key, y->key, n);
  return order ? order : (x->key_length > y->key_length) - (x->key_length < y->key_length);
}

static int by_storage(const void *a, const void *b) {
  const picked *x = a, *y = b;
  int order = compare_keys(x->storage, y->storage);
  return order ? order : x->slot - y->slot;
}

static cmkd_status too_short(loader *l, const picked *k, uint64_t have) {
  return cmkd_fail(
      l->err, CMKD_ERR_FORMAT,
      "%s: the storage of tensor %.200s has %llu bytes and should have %lld items of %zu; the file is damaged", l->file,
      l->out->tensors[k->slot].name, (unsigned long long)have, (long long)k->storage->numel,
      cmkd_dtype_size(k->storage->dtype));
}

static cmkd_status missing(loader *l, const picked *k) {
  return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: the storage of tensor %.200s is missing; fetch the file again",
                   l->file, l->out->tensors[k->slot].name);
}

/* ---- the zip container: NAME/data.pkl, NAME/byteorder, NAME/data/KEY ---- */

static cmkd_status find_pickle(const cmkd_zip *zip, const cmkd_zip_entry **pickle, size_t *prefix, cmkd_error *err) {
  static const char tail[] = "data.pkl";
  *pickle = NULL;
  for (uint32_t i = 0; i < zip->count; i++) {
    const cmkd_zip_entry *e = &zip->entries[i];
    if (e->name_length < 8 || memcmp(e->name + e->name_length - 8, tail, 8)) continue;
    if (e->name_length > 8 && e->name[e->name_length - 9] != '/') continue;
    if (*pickle)
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: a zip archive with two data.pkl; not written by torch.save",
                       zip->file);
    *pickle = e;
    *prefix = e->name_length - 8;
  }
  if (!*pickle)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: a zip archive, but not of PyTorch (no data.pkl in it); give the file that torch.save wrote",
                     zip->file);
  return CMKD_OK;
}

/* The storages in the order of their keys, each read once however many tensors share it. */
static cmkd_status copy_from_zip(loader *l, const cmkd_zip *zip, const char *prefix, size_t prefix_length,
                                 uint64_t limit) {
  char name[1024];
  const uint8_t *data = NULL;
  uint8_t *owned = NULL;
  uint64_t have = 0;
  cmkd_status status = CMKD_OK;
  qsort(l->picked, (size_t)l->count, sizeof *l->picked, by_storage);
  for (int i = 0; i < l->count && status == CMKD_OK; i++) {
    const picked *k = &l->picked[i];
    uint64_t item = cmkd_dtype_size(k->storage->dtype);
    if (i == 0 || compare_keys(k->storage, l->picked[i - 1].storage)) {
      free(owned);
      owned = NULL;
      int fits = prefix_length + 5 + k->storage->key_length <= sizeof name;
      if (fits) {
        memcpy(name, prefix, prefix_length);
        memcpy(name + prefix_length, "data/", 5);
        memcpy(name + prefix_length + 5, k->storage->key, k->storage->key_length);
      }
      const cmkd_zip_entry *e = fits ? cmkd_zip_find(zip, name, prefix_length + 5 + k->storage->key_length) : NULL;
      status = e ? cmkd_zip_read(zip, e, limit, &data, &owned, l->err) : missing(l, k);
      have = e ? e->size : 0;
      if (status != CMKD_OK) break;
    }
    if ((uint64_t)k->storage->numel > have / item)
      status = too_short(l, k, have);
    else
      copy_tensor(k, &l->out->tensors[k->slot], data);
  }
  free(owned);
  return status;
}

static cmkd_status check_byteorder(const cmkd_zip *zip, const char *prefix, size_t prefix_length, cmkd_error *err) {
  char name[1024];
  const uint8_t *data;
  uint8_t *owned;
  if (prefix_length + 9 > sizeof name) return CMKD_OK;
  memcpy(name, prefix, prefix_length);
  memcpy(name + prefix_length, "byteorder", 9);
  const cmkd_zip_entry *e = cmkd_zip_find(zip, name, prefix_length + 9);
  if (!e) return CMKD_OK; /* before 2.1: little */
  CMKD_TRY(cmkd_zip_read(zip, e, 64, &data, &owned, err));
  int little = e->size == 6 && !memcmp(data, "little", 6);
  free(owned);
  if (little) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: its byte order is not little; save it again on an ordinary machine",
                   zip->file);
}

static cmkd_status parse_zip(loader *l, const uint8_t *bytes, size_t size) {
  cmkd_zip zip;
  const cmkd_zip_entry *entry;
  size_t prefix = 0;
  const uint8_t *data = NULL;
  uint8_t *owned = NULL;
  cmkd_pickle *pickle = NULL;
  CMKD_TRY(cmkd_zip_open(bytes, size, l->file, &zip, l->err));
  cmkd_status status = find_pickle(&zip, &entry, &prefix, l->err);
  if (status == CMKD_OK) status = check_byteorder(&zip, entry->name, prefix, l->err);
  if (status == CMKD_OK) status = cmkd_zip_read(&zip, entry, CMKD_MAX_PICKLE, &data, &owned, l->err);
  if (status == CMKD_OK) status = cmkd_pickle_load(data, (size_t)entry->size, l->file, &pickle, l->err);
  l->p = pickle;
  if (status == CMKD_OK) status = pick_tensors(l);
  if (status == CMKD_OK) status = describe_tensors(l, MEMORY_LIMIT(size));
  if (status == CMKD_OK) status = copy_from_zip(l, &zip, entry->name, prefix, MEMORY_LIMIT(size));
  cmkd_pickle_free(pickle);
  free(owned);
  cmkd_zip_close(&zip);
  return status;
}

/* ---- the legacy stream: pickles of magic, version, system, object, storage keys; then each storage: int64 count,
 * items ---- */

typedef struct stream {
  const uint8_t *bytes;
  size_t size, at;
} stream;
typedef struct place {
  const cmkd_pk_storage *storage;
  uint64_t offset;
  int found;
} place;

static cmkd_status next_pickle(loader *l, stream *s, cmkd_pickle **out) {
  CMKD_TRY(cmkd_pickle_load(s->bytes + s->at, s->size - s->at, l->file, out, l->err));
  s->at += (*out)->used;
  return CMKD_OK;
}

static const cmkd_pk_value *root_of(const cmkd_pickle *p) { return &p->values[p->root]; }

/* Magic 0x1950a86a20f9469cfc6c, protocol 1001, a dict that says little_endian. */
static cmkd_status read_preamble(loader *l, stream *s) {
  static const uint8_t magic[] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
  for (int i = 0; i < 3; i++) {
    cmkd_pickle *p;
    CMKD_TRY(next_pickle(l, s, &p));
    const cmkd_pk_value *root = root_of(p), *little = cmkd_pickle_get(p, root, "little_endian");
    int good = i == 0 ? root->kind == CMKD_PK_BIG && root->length == sizeof magic &&
                            !memcmp(root->as.text, magic, sizeof magic)
               : i == 1 ? root->kind == CMKD_PK_INT && root->as.integer == 1001
                        : little && little->kind == CMKD_PK_BOOL && little->as.integer == 1;
    cmkd_pickle_free(p);
    if (!good && i == 0)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                       "%s: a pickle, but not one that torch.save wrote; save model.state_dict() with torch.save",
                       l->file);
    if (!good)
      return cmkd_fail(l->err, CMKD_ERR_UNSUPPORTED, "%s: %s", l->file,
                       i == 1 ? "an unknown version of PyTorch's legacy format; save it again with a newer PyTorch"
                              : "its byte order is not little; save it again on an ordinary machine");
  }
  return CMKD_OK;
}

static int by_place(const void *a, const void *b) {
  const place *x = a, *y = b;
  int order = compare_keys(x->storage, y->storage);
  return order ? order : (x->storage > y->storage) - (x->storage < y->storage);
}

/* One place for each key that the object's pickle mentions, sorted; a key with two types or sizes is refused. */
static cmkd_status list_places(loader *l, place *places, uint32_t *count) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < l->p->storage_count; i++)
    places[i] = (place){&l->p->storages[i], 0, 0};
  qsort(places, l->p->storage_count, sizeof *places, by_place);
  for (uint32_t i = 0; i < l->p->storage_count; i++) {
    const cmkd_pk_storage *a = kept ? places[kept - 1].storage : NULL, *b = places[i].storage;
    if (!a || compare_keys(a, b))
      places[kept++] = places[i];
    else if (a->dtype != b->dtype || a->numel != b->numel)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: a storage is named with two types or sizes; the file is damaged",
                       l->file);
  }
  *count = kept;
  return CMKD_OK;
}

static place *find_place(place *places, uint32_t count, const uint8_t *key, uint32_t length) {
  uint32_t low = 0, high = count;
  cmkd_pk_storage wanted = {.key = key, .key_length = length};
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    int order = compare_keys(&wanted, places[middle].storage);
    if (order == 0) return &places[middle];
    if (order < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return NULL;
}

/* Walks the raw storages in the order of `keys` and notes where each lies. */
static cmkd_status locate_storages(loader *l, stream *s, const cmkd_pickle *keys, place *places, uint32_t count) {
  const cmkd_pk_value *list = root_of(keys);
  if (list->kind != CMKD_PK_LIST)
    return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                     "%s: damaged: no list of storages where one should be; fetch the file again", l->file);
  for (uint32_t i = 0; i < list->length; i++) {
    const cmkd_pk_value *key = &keys->values[list->as.item[i]];
    place *p = key->kind == CMKD_PK_STRING ? find_place(places, count, key->as.text, key->length) : NULL;
    if (!p || p->found)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT,
                       "%s: damaged: a storage that nothing refers to, or twice the same; fetch the file again",
                       l->file);
    uint64_t numel = 0, item = cmkd_dtype_size(p->storage->dtype);
    if (s->size - s->at < 8)
      return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: truncated before storage %u of %u; fetch the file again", l->file,
                       i + 1, list->length);
    for (int b = 0; b < 8; b++)
      numel |= (uint64_t)s->bytes[s->at + (size_t)b] << 8 * b;
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

static cmkd_status copy_from_stream(loader *l, stream *s) {
  uint32_t count = 0;
  cmkd_pickle *keys = NULL;
  place *places = calloc((size_t)l->p->storage_count + 1, sizeof *places);
  if (!places) return cmkd_fail(l->err, CMKD_ERR_MEMORY, "%s: out of memory", l->file);
  cmkd_status status = list_places(l, places, &count);
  if (status == CMKD_OK) status = next_pickle(l, s, &keys);
  if (status == CMKD_OK) status = locate_storages(l, s, keys, places, count);
  for (int i = 0; i < l->count && status == CMKD_OK; i++) {
    const picked *k = &l->picked[i];
    const place *p = find_place(places, count, k->storage->key, k->storage->key_length);
    if (!p || !p->found)
      status = missing(l, k);
    else
      copy_tensor(k, &l->out->tensors[k->slot], s->bytes + p->offset);
  }
  cmkd_pickle_free(keys);
  free(places);
  return status;
}

static cmkd_status parse_legacy(loader *l, const uint8_t *bytes, size_t size) {
  stream s = {bytes, size, 0};
  cmkd_pickle *object = NULL;
  CMKD_TRY(read_preamble(l, &s));
  cmkd_status status = next_pickle(l, &s, &object);
  l->p = object;
  if (status == CMKD_OK) status = pick_tensors(l);
  if (status == CMKD_OK) status = describe_tensors(l, MEMORY_LIMIT(size));
  if (status == CMKD_OK) status = copy_from_stream(l, &s);
  cmkd_pickle_free(object);
  return status;
}

cmkd_status cmkd_torch_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out, cmkd_error *err) {
  loader l = {.file = name, .out = out, .err = err};
  cmkd_status status = bytes[0] == 'P' ? parse_zip(&l, bytes, size) : parse_legacy(&l, bytes, size);
  free(l.picked);
  return status;
}
