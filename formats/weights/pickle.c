#include "formats/weights/pickle.h"
#include "formats/weights/containers.h"
#include <stdlib.h>
#include <string.h>

/* Values that need no room of their own. */
enum { V_NONE, V_TRUE, V_FALSE, V_EMPTY_TUPLE, V_FIRST_FREE };

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

/* Opcodes that are never obeyed, for the message. */
static const struct {
  uint8_t code;
  const char *name;
} refused[] = {{'0', "POP"},          {'1', "POP_MARK"},
               {'2', "DUP"},          {'F', "FLOAT"},
               {'I', "INT"},          {'L', "LONG"},
               {'S', "STRING"},       {'V', "UNICODE"},
               {'P', "PERSID"},       {'p', "PUT"},
               {'g', "GET"},          {'d', "DICT"},
               {'l', "LIST"},         {'i', "INST"},
               {'o', "OBJ"},          {0x81, "NEWOBJ"},
               {0x82, "EXT1"},        {0x83, "EXT2"},
               {0x84, "EXT4"},        {0x8f, "EMPTY_SET"},
               {0x90, "ADDITEMS"},    {0x91, "FROZENSET"},
               {0x92, "NEWOBJ_EX"},   {0x96, "BYTEARRAY8"},
               {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"}};

typedef struct machine {
  cmkd_pickle *p;
  const uint8_t *at, *end;
  size_t size;
  const char *file;
  uint32_t *stack, *marks, *memo; /* value indices; stack heights; value indices + 1, 0: not set */
  uint32_t height, stack_capacity, mark_count, mark_capacity, memo_count, memo_capacity;
  uint64_t copied; /* items taken from lists by OrderedDict: a list used again and again must not multiply */
  cmkd_error *err;
} machine;

static cmkd_status broken(machine *m, const char *what) {
  return cmkd_fail(m->err, CMKD_ERR_FORMAT, "%s: damaged pickle: %s; fetch the file again", m->file, what);
}

/* Room for one more item of an array that doubles. */
static void *doubled(machine *m, void *array, uint32_t *capacity, size_t item) {
  uint32_t more = *capacity ? *capacity * 2 : 64;
  void *bigger = more > *capacity ? realloc(array, more * item) : NULL;
  if (bigger)
    *capacity = more;
  else
    cmkd_fail(m->err, CMKD_ERR_MEMORY, "%s: out of memory", m->file);
  return bigger;
}
#define GROW(array, count, capacity) \
  do { \
    if ((count) < (capacity)) break; \
    void *bigger_ = doubled(m, (array), &(capacity), sizeof *(array)); \
    if (!bigger_) return CMKD_ERR_MEMORY; \
    (array) = bigger_; \
  } while (0)

static cmkd_status push(machine *m, uint32_t value) {
  GROW(m->stack, m->height, m->stack_capacity);
  m->stack[m->height++] = value;
  return CMKD_OK;
}

static cmkd_status push_new(machine *m, cmkd_pk_value value) {
  GROW(m->p->values, m->p->value_count, m->p->value_capacity);
  m->p->values[m->p->value_count] = value;
  return push(m, m->p->value_count++);
}

static cmkd_pk_value *value(machine *m, uint32_t index) { return &m->p->values[index]; }
/* The stack's lowest place that the current mark leaves reachable. */
static uint32_t floor_of(const machine *m) { return m->mark_count ? m->marks[m->mark_count - 1] : 0; }

/* Top of the stack, taken off. */
static cmkd_status pop(machine *m, uint32_t *out) {
  if (m->height <= floor_of(m)) return broken(m, "its stack runs empty");
  *out = m->stack[--m->height];
  return CMKD_OK;
}

/* Takes the mark off; *first is the height it stood at, so items are stack[*first .. height). */
static cmkd_status pop_mark(machine *m, uint32_t *first) {
  if (!m->mark_count) return broken(m, "no mark on its stack");
  *first = m->marks[--m->mark_count];
  return CMKD_OK;
}

static cmkd_status take(machine *m, uint64_t bytes, const uint8_t **out) {
  if (bytes > (uint64_t)(m->end - m->at)) return broken(m, "truncated");
  *out = m->at;
  m->at += bytes;
  return CMKD_OK;
}

static uint64_t little(const uint8_t *p, int bytes) {
  uint64_t v = 0;
  for (int i = 0; i < bytes; i++)
    v |= (uint64_t)p[i] << 8 * i;
  return v;
}

static cmkd_status take_number(machine *m, int bytes, uint64_t *out) {
  const uint8_t *p = NULL;
  CMKD_TRY(take(m, (uint64_t)bytes, &p));
  *out = little(p, bytes);
  return CMKD_OK;
}

/* A counted run of bytes whose length takes `width` bytes. */
static cmkd_status push_text(machine *m, cmkd_pk_kind kind, int width) {
  uint64_t length = 0;
  const uint8_t *text = NULL;
  CMKD_TRY(take_number(m, width, &length));
  CMKD_TRY(take(m, length, &text));
  return push_new(m, (cmkd_pk_value){.kind = kind, .length = (uint32_t)length, .as.text = text});
}

static cmkd_status push_long(machine *m, int width) {
  uint64_t length = 0;
  const uint8_t *text = NULL;
  CMKD_TRY(take_number(m, width, &length));
  CMKD_TRY(take(m, length, &text));
  if (length > 8) return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_BIG, .length = (uint32_t)length, .as.text = text});
  uint64_t v = little(text, (int)length);
  if (length && length < 8 && text[length - 1] & 0x80) v |= UINT64_MAX << 8 * length;
  return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_INT, .as.integer = (int64_t)v});
}

static cmkd_status push_float(machine *m) {
  const uint8_t *p = NULL;
  uint64_t bits = 0;
  double v;
  CMKD_TRY(take(m, 8, &p));
  for (int i = 0; i < 8; i++)
    bits = bits << 8 | p[i]; /* big endian, of all things */
  memcpy(&v, &bits, 8);
  return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_FLOAT, .as.real = v});
}

/* ---- containers ---- */

static cmkd_status push_tuple(machine *m, uint32_t first) {
  uint32_t count = m->height - first;
  if (!count) return push(m, V_EMPTY_TUPLE);
  uint32_t *items = malloc(count * sizeof *items);
  if (!items) return cmkd_fail(m->err, CMKD_ERR_MEMORY, "%s: out of memory", m->file);
  memcpy(items, m->stack + first, count * sizeof *items);
  m->height = first;
  cmkd_status status = push_new(m, (cmkd_pk_value){.kind = CMKD_PK_TUPLE, .length = count, .as.item = items});
  if (status != CMKD_OK) free(items);
  return status;
}

static cmkd_status push_small_tuple(machine *m, uint32_t count) {
  if (m->height - floor_of(m) < count) return broken(m, "its stack runs empty");
  return push_tuple(m, m->height - count);
}

/* Moves stack[first .. height) to the end of the list or dict below it. Rooms are powers of two, so the length alone
 * tells them. */
static cmkd_status extend(machine *m, uint32_t first, cmkd_pk_kind kind) {
  uint32_t count = m->height - first;
  if (first <= floor_of(m)) return broken(m, "its stack runs empty");
  cmkd_pk_value *target = value(m, m->stack[first - 1]);
  if (target->kind != kind)
    return broken(m,
                  kind == CMKD_PK_DICT ? "items are set in what is no dict" : "items are appended to what is no list");
  if (kind == CMKD_PK_DICT && count % 2) return broken(m, "a key without a value");
  m->height = first;
  if (!count) return CMKD_OK;
  uint64_t want = (uint64_t)target->length + count, capacity = 4, old_capacity = 4;
  while (old_capacity < target->length)
    old_capacity *= 2;
  while (capacity < want)
    capacity *= 2;
  if (want > UINT32_MAX / 2) return broken(m, "too many items");
  if (!target->length || capacity > old_capacity) {
    uint32_t *bigger = realloc(target->length ? target->as.item : NULL, capacity * sizeof *bigger);
    if (!bigger) return cmkd_fail(m->err, CMKD_ERR_MEMORY, "%s: out of memory", m->file);
    target->as.item = bigger;
  }
  memcpy(target->as.item + target->length, m->stack + first, count * sizeof *m->stack);
  target->length = (uint32_t)want;
  return CMKD_OK;
}

static cmkd_status extend_marked(machine *m, cmkd_pk_kind kind) {
  uint32_t first = 0;
  CMKD_TRY(pop_mark(m, &first));
  return extend(m, first, kind);
}

static cmkd_status extend_by(machine *m, cmkd_pk_kind kind, uint32_t count) {
  if (m->height - floor_of(m) < count) return broken(m, "its stack runs empty");
  return extend(m, m->height - count, kind);
}

/* ---- memo ---- */

static cmkd_status memo_put(machine *m, uint64_t index) {
  if (m->height <= floor_of(m)) return broken(m, "its stack runs empty");
  if (index >= m->size) return broken(m, "a memo number larger than the pickle"); /* writers count from 0 */
  if (index >= m->memo_capacity) {
    uint64_t capacity = m->memo_capacity ? m->memo_capacity : 256;
    while (capacity <= index)
      capacity *= 2;
    uint32_t *bigger = realloc(m->memo, capacity * sizeof *bigger);
    if (!bigger) return cmkd_fail(m->err, CMKD_ERR_MEMORY, "%s: out of memory", m->file);
    memset(bigger + m->memo_capacity, 0, (capacity - m->memo_capacity) * sizeof *bigger);
    m->memo = bigger;
    m->memo_capacity = (uint32_t)capacity;
  }
  m->memo_count += m->memo[index] == 0;
  m->memo[index] = m->stack[m->height - 1] + 1;
  return CMKD_OK;
}

static cmkd_status memo_get(machine *m, uint64_t index) {
  if (index >= m->memo_capacity || !m->memo[index]) return broken(m, "a memo number that was never set");
  return push(m, m->memo[index] - 1);
}

/* ---- globals and what may be done with them ---- */

static int same(const uint8_t *text, size_t length, const char *word) {
  return length == strlen(word) && !memcmp(text, word, length);
}

static cmkd_status push_global(machine *m, const uint8_t *module, size_t module_length, const uint8_t *name,
                               size_t name_length) {
  for (size_t i = 0; i < sizeof globals / sizeof *globals; i++) {
    int in_cuda =
        globals[i].id >= G_STORAGE && same(module, module_length, "torch.cuda"); /* storages saved on a GPU long ago */
    if (same(name, name_length, globals[i].name) && (in_cuda || same(module, module_length, globals[i].module)))
      return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_GLOBAL, .as.integer = globals[i].id});
  }
  return cmkd_fail(m->err, CMKD_ERR_UNSUPPORTED,
                   "%s: refused: its pickle wants %.*s.%.*s; nothing in a file is ever executed. Save a plain "
                   "state_dict() of tensors instead",
                   m->file, (int)(module_length < 100 ? module_length : 100), (const char *)module,
                   (int)(name_length < 100 ? name_length : 100), (const char *)name);
}

static cmkd_status op_global(machine *m) {
  const uint8_t *line[2], *stop;
  size_t length[2];
  for (int i = 0; i < 2; i++) {
    stop = memchr(m->at, '\n', (size_t)(m->end - m->at));
    if (!stop) return broken(m, "truncated");
    line[i] = m->at;
    length[i] = (size_t)(stop - m->at);
    m->at = stop + 1;
  }
  return push_global(m, line[0], length[0], line[1], length[1]);
}

static cmkd_status op_stack_global(machine *m) {
  uint32_t name, module;
  CMKD_TRY(pop(m, &name));
  CMKD_TRY(pop(m, &module));
  const cmkd_pk_value *n = value(m, name), *d = value(m, module);
  if (n->kind != CMKD_PK_STRING || d->kind != CMKD_PK_STRING) return broken(m, "a global without a name");
  return push_global(m, d->as.text, d->length, n->as.text, n->length);
}

static int is_index(const cmkd_pk_value *v) { return v->kind == CMKD_PK_INT && v->as.integer >= 0; }

/* ('storage', type, key, location, numel[, view]): view is None or (key, offset, numel). */
static cmkd_status op_persistent_id(machine *m) {
  uint32_t id;
  CMKD_TRY(pop(m, &id));
  const cmkd_pk_value *t = value(m, id), *item[6] = {0};
  if (t->kind != CMKD_PK_TUPLE || t->length < 5 || t->length > 6)
    return broken(m, "a persistent id that is no storage");
  for (uint32_t i = 0; i < t->length; i++)
    item[i] = value(m, t->as.item[i]);
  if (item[0]->kind != CMKD_PK_STRING || !same(item[0]->as.text, item[0]->length, "storage") ||
      item[1]->kind != CMKD_PK_GLOBAL || item[1]->as.integer < G_STORAGE || item[2]->kind != CMKD_PK_STRING ||
      !is_index(item[4]))
    return broken(m, "a persistent id that is no storage");
  cmkd_pk_storage s = {
      item[2]->as.text,   item[2]->length, (cmkd_dtype)(item[1]->as.integer - G_STORAGE), item[4]->as.integer, 0,
      item[4]->as.integer};
  if (item[5] && item[5]->kind != CMKD_PK_NONE) {
    const cmkd_pk_value *view = item[5];
    if (view->kind != CMKD_PK_TUPLE || view->length != 3) return broken(m, "a storage's view is no triple");
    const cmkd_pk_value *offset = value(m, view->as.item[1]), *numel = value(m, view->as.item[2]);
    if (!is_index(offset) || !is_index(numel) || offset->as.integer > s.numel ||
        numel->as.integer > s.numel - offset->as.integer)
      return broken(m, "a storage's view reaches outside of it");
    s.view_offset = offset->as.integer;
    s.view_numel = numel->as.integer;
  }
  if (m->p->storage_count >= CMKD_MAX_TENSORS) return broken(m, "more than a million storages");
  GROW(m->p->storages, m->p->storage_count, m->p->storage_capacity);
  m->p->storages[m->p->storage_count] = s;
  return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_STORAGE, .as.index = m->p->storage_count++});
}

static cmkd_status read_sizes(machine *m, const cmkd_pk_value *tuple, int64_t out[CMKD_MAX_DIMS], const char *what) {
  if (tuple->kind != CMKD_PK_TUPLE && tuple->kind != CMKD_PK_LIST) return broken(m, what);
  if (tuple->length > CMKD_MAX_DIMS)
    return cmkd_fail(m->err, CMKD_ERR_UNSUPPORTED, "%s: a tensor of %u dimensions; at most %d are known", m->file,
                     tuple->length, CMKD_MAX_DIMS);
  for (uint32_t i = 0; i < tuple->length; i++) {
    const cmkd_pk_value *v = value(m, tuple->as.item[i]);
    if (!is_index(v)) return broken(m, what);
    out[i] = v->as.integer;
  }
  return CMKD_OK;
}

/* (storage, offset, size, stride, ...): what follows (requires_grad, hooks, metadata) says nothing about the numbers.
 */
static cmkd_status make_tensor(machine *m, const cmkd_pk_value *args) {
  cmkd_pk_tensor t = {0};
  if (args->length < 4) return broken(m, "a tensor without its four arguments");
  const cmkd_pk_value *storage = value(m, args->as.item[0]), *offset = value(m, args->as.item[1]),
                      *size = value(m, args->as.item[2]), *stride = value(m, args->as.item[3]);
  if (storage->kind != CMKD_PK_STORAGE || !is_index(offset)) return broken(m, "a tensor without a storage");
  CMKD_TRY(read_sizes(m, size, t.size, "a tensor's size is no tuple of numbers"));
  CMKD_TRY(read_sizes(m, stride, t.stride, "a tensor's stride is no tuple of numbers"));
  if (size->length != stride->length) return broken(m, "a tensor's size and stride differ in length");
  t.storage = storage->as.index;
  t.offset = offset->as.integer;
  t.dims = (int)size->length;
  if (m->p->tensor_count >= CMKD_MAX_TENSORS) return broken(m, "more than a million tensors");
  GROW(m->p->tensors, m->p->tensor_count, m->p->tensor_capacity);
  m->p->tensors[m->p->tensor_count] = t;
  return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_TENSOR, .as.index = m->p->tensor_count++});
}

/* OrderedDict() or, as Python 2 wrote it, OrderedDict([[key, value], ...]). */
static cmkd_status make_dict(machine *m, const cmkd_pk_value *args) {
  if (args->length > 1) return broken(m, "an OrderedDict of several arguments");
  cmkd_pk_value pairs = args->length ? *value(m, args->as.item[0]) : (cmkd_pk_value){.kind = CMKD_PK_LIST};
  if (pairs.kind != CMKD_PK_LIST && pairs.kind != CMKD_PK_TUPLE)
    return broken(m, "an OrderedDict of something else than pairs");
  if ((m->copied += pairs.length) > m->size) return broken(m, "it copies one list too often");
  CMKD_TRY(push_new(m, (cmkd_pk_value){.kind = CMKD_PK_DICT}));
  uint32_t first = m->height;
  for (uint32_t i = 0; i < pairs.length; i++) {
    const cmkd_pk_value *pair = value(m, pairs.as.item[i]);
    if ((pair->kind != CMKD_PK_LIST && pair->kind != CMKD_PK_TUPLE) || pair->length != 2)
      return broken(m, "an OrderedDict of something else than pairs");
    CMKD_TRY(push(m, pair->as.item[0]));
    CMKD_TRY(push(m, pair->as.item[1]));
  }
  return extend(m, first, CMKD_PK_DICT);
}

static cmkd_status op_reduce(machine *m) {
  uint32_t args_index = 0, callable = 0;
  CMKD_TRY(pop(m, &args_index));
  CMKD_TRY(pop(m, &callable));
  const cmkd_pk_value *args = value(m, args_index), *f = value(m, callable);
  if (f->kind != CMKD_PK_GLOBAL || args->kind != CMKD_PK_TUPLE) return broken(m, "a call of what is no function");
  switch (f->as.integer) {
  case G_ORDERED_DICT: return make_dict(m, args);
  case G_TENSOR:
  case G_TENSOR_V2: return make_tensor(m, args);
  case G_PARAMETER:
    if (!args->length || value(m, args->as.item[0])->kind != CMKD_PK_TENSOR)
      return broken(m, "a parameter without a tensor");
    return push(m, args->as.item[0]);
  case G_SIZE:
    if (args->length != 1 || value(m, args->as.item[0])->kind != CMKD_PK_TUPLE)
      return broken(m, "a torch.Size of something else than a tuple");
    return push(m, args->as.item[0]);
  default: return broken(m, "a storage type is called");
  }
}

/* State of a state dict (`_metadata`, a dict) is dropped; nothing else may have any. */
static cmkd_status op_build(machine *m) {
  uint32_t state;
  CMKD_TRY(pop(m, &state));
  if (m->height <= floor_of(m)) return broken(m, "its stack runs empty");
  if (value(m, m->stack[m->height - 1])->kind != CMKD_PK_DICT || value(m, state)->kind != CMKD_PK_DICT)
    return cmkd_fail(
        m->err, CMKD_ERR_UNSUPPORTED,
        "%s: refused: its pickle uses BUILD on something other than a dict; nothing in a file is ever executed",
        m->file);
  return CMKD_OK;
}

static cmkd_status refuse(machine *m, uint8_t code) {
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
    if (refused[i].code == code)
      return cmkd_fail(m->err, CMKD_ERR_UNSUPPORTED,
                       "%s: refused: its pickle uses the opcode %s; only tensors in plain containers are read. Save a "
                       "plain state_dict() instead",
                       m->file, refused[i].name);
  return cmkd_fail(m->err, CMKD_ERR_FORMAT, "%s: damaged pickle: byte 0x%02x is no opcode; fetch the file again",
                   m->file, code);
}

static cmkd_status op_int(machine *m, int bytes) {
  uint64_t v;
  CMKD_TRY(take_number(m, bytes, &v));
  return push_new(m,
                  (cmkd_pk_value){.kind = CMKD_PK_INT, .as.integer = bytes == 4 ? (int32_t)(uint32_t)v : (int64_t)v});
}

static cmkd_status op_mark(machine *m) {
  GROW(m->marks, m->mark_count, m->mark_capacity);
  m->marks[m->mark_count++] = m->height;
  return CMKD_OK;
}

static cmkd_status step(machine *m, uint8_t code) {
  uint64_t number = 0;
  uint32_t first = 0;
  switch (code) {
  case 0x80: CMKD_TRY(take_number(m, 1, &number)); return number <= 5 ? CMKD_OK : broken(m, "an unknown protocol");
  case 0x95: return take_number(m, 8, &number); /* FRAME: a hint for readers of streams */
  case '(': return op_mark(m);
  case 'N': return push(m, V_NONE);
  case 0x88: return push(m, V_TRUE);
  case 0x89: return push(m, V_FALSE);
  case 'J': return op_int(m, 4);
  case 'K': return op_int(m, 1);
  case 'M': return op_int(m, 2);
  case 0x8a: return push_long(m, 1);
  case 0x8b: return push_long(m, 4);
  case 'G': return push_float(m);
  case 'X': return push_text(m, CMKD_PK_STRING, 4);
  case 0x8c: return push_text(m, CMKD_PK_STRING, 1);
  case 0x8d: return push_text(m, CMKD_PK_STRING, 8);
  case 'T': return push_text(m, CMKD_PK_STRING, 4); /* Python 2's str */
  case 'U': return push_text(m, CMKD_PK_STRING, 1);
  case 'B': return push_text(m, CMKD_PK_BYTES, 4);
  case 'C': return push_text(m, CMKD_PK_BYTES, 1);
  case 0x8e: return push_text(m, CMKD_PK_BYTES, 8);
  case ')': return push(m, V_EMPTY_TUPLE);
  case ']': return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_LIST});
  case '}': return push_new(m, (cmkd_pk_value){.kind = CMKD_PK_DICT});
  case 't': CMKD_TRY(pop_mark(m, &first)); return push_tuple(m, first);
  case 0x85: return push_small_tuple(m, 1);
  case 0x86: return push_small_tuple(m, 2);
  case 0x87: return push_small_tuple(m, 3);
  case 'a': return extend_by(m, CMKD_PK_LIST, 1);
  case 'e': return extend_marked(m, CMKD_PK_LIST);
  case 's': return extend_by(m, CMKD_PK_DICT, 2);
  case 'u': return extend_marked(m, CMKD_PK_DICT);
  case 'q': CMKD_TRY(take_number(m, 1, &number)); return memo_put(m, number);
  case 'r': CMKD_TRY(take_number(m, 4, &number)); return memo_put(m, number);
  case 0x94: return memo_put(m, m->memo_count);
  case 'h': CMKD_TRY(take_number(m, 1, &number)); return memo_get(m, number);
  case 'j': CMKD_TRY(take_number(m, 4, &number)); return memo_get(m, number);
  case 'c': return op_global(m);
  case 0x93: return op_stack_global(m);
  case 'R': return op_reduce(m);
  case 'Q': return op_persistent_id(m);
  case 'b': return op_build(m);
  default: return refuse(m, code);
  }
}

static cmkd_status run(machine *m, const uint8_t *bytes) {
  static const cmkd_pk_value first[] = {{.kind = CMKD_PK_NONE},
                                        {.kind = CMKD_PK_BOOL, .as.integer = 1},
                                        {.kind = CMKD_PK_BOOL, .as.integer = 0},
                                        {.kind = CMKD_PK_TUPLE}};
  GROW(m->p->values, 0, m->p->value_capacity);
  memcpy(m->p->values, first, sizeof first);
  m->p->value_count = V_FIRST_FREE;
  if (m->at == m->end || *m->at != 0x80) return broken(m, "it does not begin with a protocol of 2 or more");
  while (m->at < m->end) {
    uint8_t code = *m->at++;
    if (code == '.') {
      CMKD_TRY(pop(m, &m->p->root));
      m->p->used = (size_t)(m->at - bytes);
      return CMKD_OK;
    }
    CMKD_TRY(step(m, code));
  }
  return broken(m, m->size == CMKD_MAX_PICKLE ? "it is larger than 16 MiB" : "truncated");
}

cmkd_status cmkd_pickle_load(const uint8_t *bytes, size_t size, const char *file, cmkd_pickle **out, cmkd_error *err) {
  *out = NULL;
  if (size > CMKD_MAX_PICKLE) size = CMKD_MAX_PICKLE;
  cmkd_pickle *p = calloc(1, sizeof *p);
  if (!p) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", file);
  machine m = {.p = p, .at = bytes, .end = bytes + size, .size = size, .file = file, .err = err};
  cmkd_status status = run(&m, bytes);
  free(m.stack);
  free(m.marks);
  free(m.memo);
  if (status != CMKD_OK) {
    cmkd_pickle_free(p);
    return status;
  }
  *out = p;
  return CMKD_OK;
}

void cmkd_pickle_free(cmkd_pickle *p) {
  if (!p) return;
  for (uint32_t i = 0; i < p->value_count; i++)
    if (p->values[i].kind >= CMKD_PK_TUPLE && p->values[i].kind <= CMKD_PK_DICT && p->values[i].length)
      free(p->values[i].as.item);
  free(p->values);
  free(p->storages);
  free(p->tensors);
  free(p);
}

const cmkd_pk_value *cmkd_pickle_get(const cmkd_pickle *p, const cmkd_pk_value *dict, const char *key) {
  const cmkd_pk_value *found = NULL;
  for (uint32_t i = 0; dict && dict->kind == CMKD_PK_DICT && i < dict->length; i += 2) {
    const cmkd_pk_value *k = &p->values[dict->as.item[i]];
    if (k->kind == CMKD_PK_STRING && same(k->as.text, k->length, key)) found = &p->values[dict->as.item[i + 1]];
  }
  return found;
}
