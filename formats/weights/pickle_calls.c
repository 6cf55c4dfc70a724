/* What a pickle may name and call. See pickle_calls.h. */
#include "formats/weights/pickle_calls.h"
#include "formats/weights/tensors.h"
#include <string.h>

enum { G_ORDERED_DICT, G_TENSOR, G_TENSOR_V2, G_PARAMETER, G_SIZE, G_STORAGE /* + dtype */ };
static const struct {
  const char *module, *name;
  int id;
} globals[] = {{"collections", "OrderedDict", G_ORDERED_DICT},
               {"torch._utils", "_rebuild_tensor", G_TENSOR},
               {"torch._utils", "_rebuild_tensor_v2", G_TENSOR_V2},
               {"torch._utils", "_rebuild_parameter", G_PARAMETER},
               {"torch", "Size", G_SIZE},
               {"torch", "FloatStorage", G_STORAGE + CMKD_F32},
               {"torch", "DoubleStorage", G_STORAGE + CMKD_F64},
               {"torch", "HalfStorage", G_STORAGE + CMKD_F16},
               {"torch", "BFloat16Storage", G_STORAGE + CMKD_BF16},
               {"torch", "LongStorage", G_STORAGE + CMKD_I64},
               {"torch", "IntStorage", G_STORAGE + CMKD_I32},
               {"torch", "ShortStorage", G_STORAGE + CMKD_I16},
               {"torch", "CharStorage", G_STORAGE + CMKD_I8},
               {"torch", "ByteStorage", G_STORAGE + CMKD_U8},
               {"torch", "BoolStorage", G_STORAGE + CMKD_BOOL}};

static cmkd_status push_global(cmkd_pk_machine *m, const uint8_t *module, size_t module_length, const uint8_t *name,
                               size_t name_length) {
  for (size_t i = 0; i < sizeof globals / sizeof *globals; i++) {
    /* storages that were saved on a GPU long ago */
    int in_cuda = globals[i].id >= G_STORAGE && cmkd_pk_same(module, module_length, "torch.cuda");
    if (cmkd_pk_same(name, name_length, globals[i].name) &&
        (in_cuda || cmkd_pk_same(module, module_length, globals[i].module)))
      return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_GLOBAL, .as.integer = globals[i].id});
  }
  return cmkd_fail(m->err, CMKD_ERR_UNSUPPORTED,
                   "%s: refused: its pickle wants %.*s.%.*s; nothing in a file is ever executed. Save a plain "
                   "state_dict() of tensors instead",
                   m->file, (int)(module_length < 100 ? module_length : 100), (const char *)module,
                   (int)(name_length < 100 ? name_length : 100), (const char *)name);
}

cmkd_status cmkd_pk_op_global(cmkd_pk_machine *m) {
  const uint8_t *line[2], *stop;
  size_t length[2];
  for (int i = 0; i < 2; i++) {
    stop = memchr(m->at, '\n', (size_t)(m->end - m->at));
    if (!stop) return cmkd_pk_broken(m, "truncated");
    line[i] = m->at;
    length[i] = (size_t)(stop - m->at);
    m->at = stop + 1;
  }
  return push_global(m, line[0], length[0], line[1], length[1]);
}

cmkd_status cmkd_pk_op_stack_global(cmkd_pk_machine *m) {
  uint32_t name, module;
  CMKD_TRY(cmkd_pk_pop(m, &name));
  CMKD_TRY(cmkd_pk_pop(m, &module));
  const cmkd_pk_value *n = cmkd_pk_value_at(m, name), *d = cmkd_pk_value_at(m, module);
  if (n->kind != CMKD_PK_STRING || d->kind != CMKD_PK_STRING) return cmkd_pk_broken(m, "a global without a name");
  return push_global(m, d->as.text, d->length, n->as.text, n->length);
}

static int is_index(const cmkd_pk_value *v) { return v->kind == CMKD_PK_INT && v->as.integer >= 0; }

static cmkd_status push_storage(cmkd_pk_machine *m, const cmkd_pk_storage *storage) {
  cmkd_pickle *p = m->p;
  if (p->storage_count >= CMKD_MAX_TENSORS) return cmkd_pk_broken(m, "more than a million storages");
  cmkd_pk_storage *storages = cmkd_pk_grown(m, p->storages, p->storage_count, &p->storage_capacity, sizeof *storages);
  if (!storages) return CMKD_ERR_MEMORY;
  p->storages = storages;
  p->storages[p->storage_count] = *storage;
  return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_STORAGE, .as.index = p->storage_count++});
}

static cmkd_status push_tensor(cmkd_pk_machine *m, const cmkd_pk_tensor *tensor) {
  cmkd_pickle *p = m->p;
  if (p->tensor_count >= CMKD_MAX_TENSORS) return cmkd_pk_broken(m, "more than a million tensors");
  cmkd_pk_tensor *tensors = cmkd_pk_grown(m, p->tensors, p->tensor_count, &p->tensor_capacity, sizeof *tensors);
  if (!tensors) return CMKD_ERR_MEMORY;
  p->tensors = tensors;
  p->tensors[p->tensor_count] = *tensor;
  return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_TENSOR, .as.index = p->tensor_count++});
}

/* ('storage', type, key, location, numel[, view]): view is None or (key, offset, numel). */
cmkd_status cmkd_pk_op_persistent_id(cmkd_pk_machine *m) {
  uint32_t id;
  CMKD_TRY(cmkd_pk_pop(m, &id));
  const cmkd_pk_value *t = cmkd_pk_value_at(m, id), *item[6] = {0};
  if (t->kind != CMKD_PK_TUPLE || t->length < 5 || t->length > 6)
    return cmkd_pk_broken(m, "a persistent id that is no storage");
  for (uint32_t i = 0; i < t->length; i++)
    item[i] = cmkd_pk_value_at(m, t->as.item[i]);
  if (item[0]->kind != CMKD_PK_STRING || !cmkd_pk_same(item[0]->as.text, item[0]->length, "storage") ||
      item[1]->kind != CMKD_PK_GLOBAL || item[1]->as.integer < G_STORAGE || item[2]->kind != CMKD_PK_STRING ||
      !is_index(item[4]))
    return cmkd_pk_broken(m, "a persistent id that is no storage");
  cmkd_pk_storage s = {.key = item[2]->as.text,
                       .key_length = item[2]->length,
                       .dtype = (cmkd_dtype)(item[1]->as.integer - G_STORAGE),
                       .numel = item[4]->as.integer,
                       .view_offset = 0,
                       .view_numel = item[4]->as.integer};
  if (item[5] && item[5]->kind != CMKD_PK_NONE) {
    const cmkd_pk_value *view = item[5];
    if (view->kind != CMKD_PK_TUPLE || view->length != 3) return cmkd_pk_broken(m, "a storage's view is no triple");
    const cmkd_pk_value *offset = cmkd_pk_value_at(m, view->as.item[1]), *numel = cmkd_pk_value_at(m, view->as.item[2]);
    if (!is_index(offset) || !is_index(numel) || offset->as.integer > s.numel ||
        numel->as.integer > s.numel - offset->as.integer)
      return cmkd_pk_broken(m, "a storage's view reaches outside of it");
    s.view_offset = offset->as.integer;
    s.view_numel = numel->as.integer;
  }
  return push_storage(m, &s);
}

static cmkd_status read_sizes(cmkd_pk_machine *m, const cmkd_pk_value *tuple, int64_t out[CMKD_MAX_DIMS],
                              const char *what) {
  if (tuple->kind != CMKD_PK_TUPLE && tuple->kind != CMKD_PK_LIST) return cmkd_pk_broken(m, what);
  if (tuple->length > CMKD_MAX_DIMS)
    return cmkd_fail(m->err, CMKD_ERR_UNSUPPORTED, "%s: a tensor of %u dimensions; at most %d are known", m->file,
                     tuple->length, CMKD_MAX_DIMS);
  for (uint32_t i = 0; i < tuple->length; i++) {
    const cmkd_pk_value *v = cmkd_pk_value_at(m, tuple->as.item[i]);
    if (!is_index(v)) return cmkd_pk_broken(m, what);
    out[i] = v->as.integer;
  }
  return CMKD_OK;
}

/* (storage, offset, size, stride, ...): what follows (requires_grad, hooks, metadata) says nothing of the numbers. */
static cmkd_status make_tensor(cmkd_pk_machine *m, const cmkd_pk_value *args) {
  cmkd_pk_tensor t = {0};
  if (args->length < 4) return cmkd_pk_broken(m, "a tensor without its four arguments");
  const cmkd_pk_value *storage = cmkd_pk_value_at(m, args->as.item[0]), *offset = cmkd_pk_value_at(m, args->as.item[1]),
                      *size = cmkd_pk_value_at(m, args->as.item[2]), *stride = cmkd_pk_value_at(m, args->as.item[3]);
  if (storage->kind != CMKD_PK_STORAGE || !is_index(offset)) return cmkd_pk_broken(m, "a tensor without a storage");
  CMKD_TRY(read_sizes(m, size, t.size, "a tensor's size is no tuple of numbers"));
  CMKD_TRY(read_sizes(m, stride, t.stride, "a tensor's stride is no tuple of numbers"));
  if (size->length != stride->length) return cmkd_pk_broken(m, "a tensor's size and stride differ in length");
  t.storage = storage->as.index;
  t.offset = offset->as.integer;
  t.dims = (int)size->length;
  return push_tensor(m, &t);
}

/* OrderedDict() or, as Python 2 wrote it, OrderedDict([[key, value], ...]). */
static cmkd_status make_dict(cmkd_pk_machine *m, const cmkd_pk_value *args) {
  if (args->length > 1) return cmkd_pk_broken(m, "an OrderedDict of several arguments");
  cmkd_pk_value pairs = args->length ? *cmkd_pk_value_at(m, args->as.item[0]) : (cmkd_pk_value){.kind = CMKD_PK_LIST};
  if (pairs.kind != CMKD_PK_LIST && pairs.kind != CMKD_PK_TUPLE)
    return cmkd_pk_broken(m, "an OrderedDict of something else than pairs");
  m->copied += pairs.length;
  if (m->copied > m->size) return cmkd_pk_broken(m, "it copies one list too often");
  CMKD_TRY(cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_DICT}));
  uint32_t first = m->height;
  for (uint32_t i = 0; i < pairs.length; i++) {
    const cmkd_pk_value *pair = cmkd_pk_value_at(m, pairs.as.item[i]);
    if ((pair->kind != CMKD_PK_LIST && pair->kind != CMKD_PK_TUPLE) || pair->length != 2)
      return cmkd_pk_broken(m, "an OrderedDict of something else than pairs");
    CMKD_TRY(cmkd_pk_push(m, pair->as.item[0]));
    CMKD_TRY(cmkd_pk_push(m, pair->as.item[1]));
  }
  return cmkd_pk_extend(m, first, CMKD_PK_DICT);
}

cmkd_status cmkd_pk_op_reduce(cmkd_pk_machine *m) {
  uint32_t args_index = 0, callable = 0;
  CMKD_TRY(cmkd_pk_pop(m, &args_index));
  CMKD_TRY(cmkd_pk_pop(m, &callable));
  const cmkd_pk_value *args = cmkd_pk_value_at(m, args_index), *f = cmkd_pk_value_at(m, callable);
  if (f->kind != CMKD_PK_GLOBAL || args->kind != CMKD_PK_TUPLE)
    return cmkd_pk_broken(m, "a call of what is no function");
  switch (f->as.integer) {
  case G_ORDERED_DICT: return make_dict(m, args);
  case G_TENSOR:
  case G_TENSOR_V2: return make_tensor(m, args);
  case G_PARAMETER:
    if (!args->length || cmkd_pk_value_at(m, args->as.item[0])->kind != CMKD_PK_TENSOR)
      return cmkd_pk_broken(m, "a parameter without a tensor");
    return cmkd_pk_push(m, args->as.item[0]);
  case G_SIZE:
    if (args->length != 1 || cmkd_pk_value_at(m, args->as.item[0])->kind != CMKD_PK_TUPLE)
      return cmkd_pk_broken(m, "a torch.Size of something else than a tuple");
    return cmkd_pk_push(m, args->as.item[0]);
  default: return cmkd_pk_broken(m, "a storage type is called");
  }
}

/* State of a state dict (`_metadata`, a dict) is dropped; nothing else may have any. */
cmkd_status cmkd_pk_op_build(cmkd_pk_machine *m) {
  uint32_t state = 0, object = 0;
  CMKD_TRY(cmkd_pk_pop(m, &state));
  CMKD_TRY(cmkd_pk_top(m, &object));
  if (cmkd_pk_value_at(m, object)->kind != CMKD_PK_DICT || cmkd_pk_value_at(m, state)->kind != CMKD_PK_DICT)
    return cmkd_fail(
        m->err, CMKD_ERR_UNSUPPORTED,
        "%s: refused: its pickle uses BUILD on something other than a dict; nothing in a file is ever executed",
        m->file);
  return CMKD_OK;
}
