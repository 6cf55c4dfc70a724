/* The state dict of a PyTorch checkpoint. See torch_state.h. State dicts are found bare or under the usual keys;
 * `module.` prefixes of data-parallel wrappers are dropped. */
#include "formats/weights/torch_state.h"
#include "formats/weights/tensors.h"
#include <stdlib.h>
#include <string.h>

uint64_t cmkd_torch_memory_limit(uint64_t size) { return (64ull << 20) + 8 * size; }

/* Runs of bytes in alphabetical order, a prefix before what it begins. */
static int compare_text(const uint8_t *a, uint32_t a_length, const uint8_t *b, uint32_t b_length) {
  int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
  return order ? order : (a_length > b_length) - (a_length < b_length);
}

int cmkd_torch_compare_keys(const cmkd_pk_storage *a, const cmkd_pk_storage *b) {
  return compare_text(a->key, a->key_length, b->key, b->key_length);
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

static int by_name(const void *a, const void *b) {
  const cmkd_torch_tensor *x = a, *y = b;
  int order = compare_text(x->name, x->name_length, y->name, y->name_length);
  return order ? order : x->slot - y->slot;
}

/* A prefix that every name has comes from a wrapper. */
static void drop_prefix(cmkd_torch_loader *l, const char *prefix) {
  uint32_t n = (uint32_t)strlen(prefix);
  for (int i = 0; i < l->count; i++)
    if (l->tensor[i].name_length <= n || memcmp(l->tensor[i].name, prefix, n)) return;
  for (int i = 0; i < l->count; i++) {
    l->tensor[i].name += n;
    l->tensor[i].name_length -= n;
  }
}

static cmkd_status pick_tensors(cmkd_torch_loader *l) {
  const cmkd_pickle *p = l->pickle;
  const cmkd_pk_value *dict = find_state_dict(p);
  if (!dict)
    return cmkd_fail(
        l->err, CMKD_ERR_FORMAT,
        "%s: no state dict of tensors in it, neither bare nor under state_dict, model or net; save model.state_dict()",
        l->file);
  l->tensor = calloc((size_t)count_tensors(p, dict), sizeof *l->tensor);
  if (!l->tensor) return cmkd_fail(l->err, CMKD_ERR_MEMORY, "%s: out of memory", l->file);
  for (uint32_t i = 0; i < dict->length; i += 2) {
    const cmkd_pk_value *key = &p->values[dict->as.item[i]], *item = &p->values[dict->as.item[i + 1]];
    if (key->kind != CMKD_PK_STRING || item->kind != CMKD_PK_TENSOR) continue; /* counters and the like */
    const cmkd_pk_tensor *t = &p->tensors[item->as.index];
    l->tensor[l->count] = (cmkd_torch_tensor){key->as.text, key->length, t, &p->storages[t->storage], l->count};
    l->count++;
  }
  drop_prefix(l, "_orig_mod.");
  drop_prefix(l, "module.");
  return CMKD_OK;
}

/* Every index that size, stride and offset can reach lies in the storage's window, and there are no more numbers than
 * it has. */
static cmkd_status check_reach(cmkd_torch_loader *l, const cmkd_torch_tensor *k, const cmkd_tensor *t) {
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

static cmkd_status describe_tensors(cmkd_torch_loader *l) {
  cmkd_weights *w = l->out;
  w->tensors = calloc((size_t)l->count + 1, sizeof *w->tensors);
  if (!w->tensors) return cmkd_fail(l->err, CMKD_ERR_MEMORY, "%s: out of memory", l->file);
  for (int i = 0; i < l->count; i++) {
    const cmkd_torch_tensor *k = &l->tensor[i];
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
  return CMKD_OK;
}

/* Sorts the list by name. */
static cmkd_status check_names(cmkd_torch_loader *l) {
  qsort(l->tensor, (size_t)l->count, sizeof *l->tensor, by_name);
  for (int i = 1; i < l->count; i++)
    if (l->tensor[i].name_length == l->tensor[i - 1].name_length &&
        !memcmp(l->tensor[i].name, l->tensor[i - 1].name, l->tensor[i].name_length))
      return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: two tensors are called %.200s", l->file,
                       l->out->tensors[l->tensor[i].slot].name);
  return CMKD_OK;
}

cmkd_status cmkd_torch_select(cmkd_torch_loader *l, uint64_t size) {
  CMKD_TRY(pick_tensors(l));
  CMKD_TRY(describe_tensors(l));
  CMKD_TRY(check_names(l));
  return cmkd_weights_reserve(l->out, cmkd_torch_memory_limit(size), l->file, l->err);
}

/* ---- numbers ---- */

/* All indices were checked by check_reach. */
void cmkd_torch_copy(cmkd_torch_loader *l, const cmkd_torch_tensor *k, const uint8_t *storage) {
  const cmkd_tensor *t = &l->out->tensors[k->slot];
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
    for (int d = t->dims - 1; d >= 0; d--) { /* the next index, as an odometer counts */
      /* in a dimension of size 1 the stride may be anything: check_reach multiplied it by 0 */
      int64_t step = t->shape[d] > 1 ? k->tensor->stride[d] * (int64_t)item : 0;
      if (++index[d] < t->shape[d]) {
        from += step;
        break;
      }
      from -= (t->shape[d] - 1) * step;
      index[d] = 0;
    }
  }
}

cmkd_status cmkd_torch_missing(const cmkd_torch_loader *l, const cmkd_torch_tensor *k) {
  return cmkd_fail(l->err, CMKD_ERR_FORMAT, "%s: the storage of tensor %.200s is missing; fetch the file again",
                   l->file, l->out->tensors[k->slot].name);
}
