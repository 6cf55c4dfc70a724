/* The zip container of PyTorch checkpoints. See torch_zip.h. */
#include "formats/weights/torch_zip.h"
#include "formats/weights/zipfile.h"
#include <stdlib.h>
#include <string.h>

#define MAX_ENTRY_NAME 1024

/* Where the checkpoint lies in its archive: entries are called PREFIX "data.pkl", PREFIX "data/0", ... */
typedef struct archive {
  cmkd_zip zip;
  const cmkd_zip_entry *pickle;
  size_t prefix_length; /* of pickle->name */
} archive;

/* The entry PREFIX FOLDER NAME, or NULL. `name` has `length` bytes. */
static const cmkd_zip_entry *find_entry(const archive *a, const char *folder, const void *name, size_t length) {
  char full[MAX_ENTRY_NAME];
  size_t folder_length = strlen(folder), used = a->prefix_length + folder_length;
  if (used + length > sizeof full) return NULL;
  memcpy(full, a->pickle->name, a->prefix_length);
  memcpy(full + a->prefix_length, folder, folder_length);
  memcpy(full + used, name, length);
  return cmkd_zip_find(&a->zip, full, used + length);
}

static cmkd_status find_pickle(archive *a, cmkd_error *err) {
  static const char tail[] = "data.pkl";
  const size_t length = sizeof tail - 1;
  for (uint32_t i = 0; i < a->zip.count; i++) {
    const cmkd_zip_entry *e = &a->zip.entries[i];
    if (e->name_length < length || memcmp(e->name + e->name_length - length, tail, length)) continue;
    if (e->name_length > length && e->name[e->name_length - length - 1] != '/') continue;
    if (a->pickle)
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: a zip archive with two data.pkl; not written by torch.save",
                       a->zip.file);
    a->pickle = e;
    a->prefix_length = e->name_length - length;
  }
  if (!a->pickle)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: a zip archive, but not of PyTorch (no data.pkl in it); give the file that torch.save wrote",
                     a->zip.file);
  return CMKD_OK;
}

static cmkd_status check_byteorder(const archive *a, cmkd_error *err) {
  const uint8_t *data;
  uint8_t *owned;
  const cmkd_zip_entry *e = find_entry(a, "", "byteorder", 9);
  if (!e) return CMKD_OK; /* torch before 2.1: little */
  CMKD_TRY(cmkd_zip_read(&a->zip, e, 64, &data, &owned, err));
  int little = e->size == 6 && !memcmp(data, "little", 6);
  free(owned);
  if (little) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: its byte order is not little; save it again on an ordinary machine",
                   a->zip.file);
}

static int by_storage(const void *a, const void *b) {
  const cmkd_torch_tensor *x = a, *y = b;
  int order = cmkd_torch_compare_keys(x->storage, y->storage);
  return order ? order : x->slot - y->slot;
}

static cmkd_status check_size(const cmkd_torch_loader *l, const cmkd_torch_tensor *k, uint64_t have) {
  size_t item = cmkd_dtype_size(k->storage->dtype);
  if ((uint64_t)k->storage->numel <= have / item) return CMKD_OK;
  return cmkd_fail(
      l->err, CMKD_ERR_FORMAT,
      "%s: the storage of tensor %.200s has %llu bytes and should have %lld items of %zu; the file is damaged", l->file,
      l->out->tensors[k->slot].name, (unsigned long long)have, (long long)k->storage->numel, item);
}

/* The storages in the order of their keys, each read once however many tensors share it. */
static cmkd_status copy_tensors(cmkd_torch_loader *l, const archive *a, uint64_t limit) {
  const uint8_t *data = NULL;
  uint8_t *owned = NULL;
  uint64_t have = 0;
  cmkd_status status = CMKD_OK;
  qsort(l->tensor, (size_t)l->count, sizeof *l->tensor, by_storage);
  for (int i = 0; i < l->count && status == CMKD_OK; i++) {
    const cmkd_torch_tensor *k = &l->tensor[i];
    if (i == 0 || cmkd_torch_compare_keys(k->storage, l->tensor[i - 1].storage)) {
      free(owned);
      owned = NULL;
      const cmkd_zip_entry *e = find_entry(a, "data/", k->storage->key, k->storage->key_length);
      status = e ? cmkd_zip_read(&a->zip, e, limit, &data, &owned, l->err) : cmkd_torch_missing(l, k);
      have = e ? e->size : 0;
    }
    if (status == CMKD_OK) status = check_size(l, k, have);
    if (status == CMKD_OK) cmkd_torch_copy(l, k, data);
  }
  free(owned);
  return status;
}

cmkd_status cmkd_torch_zip_parse(cmkd_torch_loader *l, const uint8_t *bytes, size_t size) {
  archive a = {.pickle = NULL};
  const uint8_t *data = NULL;
  uint8_t *owned = NULL;
  cmkd_pickle *pickle = NULL;
  CMKD_TRY(cmkd_zip_open(bytes, size, l->file, &a.zip, l->err));
  cmkd_status status = find_pickle(&a, l->err);
  if (status == CMKD_OK) status = check_byteorder(&a, l->err);
  if (status == CMKD_OK) status = cmkd_zip_read(&a.zip, a.pickle, CMKD_MAX_PICKLE, &data, &owned, l->err);
  if (status == CMKD_OK) status = cmkd_pickle_load(data, (size_t)a.pickle->size, l->file, &pickle, l->err);
  l->pickle = pickle;
  if (status == CMKD_OK) status = cmkd_torch_select(l, size);
  if (status == CMKD_OK) status = copy_tensors(l, &a, cmkd_torch_memory_limit(size));
  cmkd_pickle_free(pickle);
  free(owned);
  cmkd_zip_close(&a.zip);
  return status;
}
