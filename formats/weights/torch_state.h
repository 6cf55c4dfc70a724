/* The state dict of a PyTorch checkpoint: which tensors of a pickle are meant, and how they lie in their storages. The
 * two containers, torch_zip.c and torch_legacy.c, find the storages' bytes. Private to the torch_*.c files. */
#ifndef CMKD_FORMATS_WEIGHTS_TORCH_STATE_H
#define CMKD_FORMATS_WEIGHTS_TORCH_STATE_H
#include "formats/weights/pickle.h"

/* A tensor of the state dict, and the storage that it looks at. Points into the pickle. */
typedef struct cmkd_torch_tensor {
  const uint8_t *name;
  uint32_t name_length;
  const cmkd_pk_tensor *tensor;
  const cmkd_pk_storage *storage;
  int slot; /* in the order of the file: its index in loader->out->tensors */
} cmkd_torch_tensor;

typedef struct cmkd_torch_loader {
  const char *file; /* for messages */
  const cmkd_pickle *pickle;
  cmkd_torch_tensor *tensor; /* (count); freed by cmkd_torch_parse */
  int count;
  cmkd_weights *out;
  cmkd_error *err;
} cmkd_torch_loader;

/* Lists the state dict of l->pickle and reserves memory in l->out for its numbers. Every index that a tensor can reach
 * lies in its storage. `size`: of the file, which bounds the memory. */
cmkd_status cmkd_torch_select(cmkd_torch_loader *l, uint64_t size);
/* Most bytes that the numbers of a file of `size` bytes, or one entry of an archive, may take: tensors may share
 * storages and entries may be deflated, but not without bound. */
uint64_t cmkd_torch_memory_limit(uint64_t size);
/* Copies a tensor out of `storage`, the bytes of its storage, row-major whatever its strides. */
void cmkd_torch_copy(cmkd_torch_loader *l, const cmkd_torch_tensor *tensor, const uint8_t *storage);
int cmkd_torch_compare_keys(const cmkd_pk_storage *a, const cmkd_pk_storage *b); /* as memcmp */
/* The error of a tensor whose storage is nowhere. */
cmkd_status cmkd_torch_missing(const cmkd_torch_loader *l, const cmkd_torch_tensor *tensor);

#endif
