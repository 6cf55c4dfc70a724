/* The opcodes of pickles. See pickle.h. The machine that they work on is in pickle_machine.c, what they may name and
 * call in pickle_calls.c. */
#include "formats/weights/pickle.h"
#include "base/bytes.h"
#include "formats/weights/pickle_calls.h"
#include "formats/weights/pickle_machine.h"
#include <stdlib.h>
#include <string.h>

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

/* A counted run of bytes whose length takes `width` bytes. */
static cmkd_status push_text(cmkd_pk_machine *m, cmkd_pk_kind kind, int width) {
  uint64_t length = 0;
  const uint8_t *text = NULL;
  CMKD_TRY(cmkd_pk_take_number(m, width, &length));
  CMKD_TRY(cmkd_pk_take(m, length, &text));
  return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = kind, .length = (uint32_t)length, .as.text = text});
}

static cmkd_status push_long(cmkd_pk_machine *m, int width) {
  uint64_t length = 0;
  const uint8_t *text = NULL;
  CMKD_TRY(cmkd_pk_take_number(m, width, &length));
  CMKD_TRY(cmkd_pk_take(m, length, &text));
  if (length > 8)
    return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_BIG, .length = (uint32_t)length, .as.text = text});
  uint64_t v = cmkd_load_little(text, (int)length);
  if (length && length < 8 && text[length - 1] & 0x80) v |= UINT64_MAX << 8 * length;
  return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_INT, .as.integer = (int64_t)v});
}

static cmkd_status push_float(cmkd_pk_machine *m) {
  const uint8_t *p = NULL;
  double v;
  CMKD_TRY(cmkd_pk_take(m, 8, &p));
  uint64_t bits = cmkd_load_big(p, 8); /* the one big-endian number of the format */
  memcpy(&v, &bits, 8);
  return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_FLOAT, .as.real = v});
}

static cmkd_status push_small_tuple(cmkd_pk_machine *m, uint32_t count) {
  uint32_t first = 0;
  CMKD_TRY(cmkd_pk_below(m, count, &first));
  return cmkd_pk_push_tuple(m, first);
}

static cmkd_status push_marked_tuple(cmkd_pk_machine *m) {
  uint32_t first = 0;
  CMKD_TRY(cmkd_pk_pop_mark(m, &first));
  return cmkd_pk_push_tuple(m, first);
}

static cmkd_status extend_marked(cmkd_pk_machine *m, cmkd_pk_kind kind) {
  uint32_t first = 0;
  CMKD_TRY(cmkd_pk_pop_mark(m, &first));
  return cmkd_pk_extend(m, first, kind);
}

static cmkd_status extend_by(cmkd_pk_machine *m, cmkd_pk_kind kind, uint32_t count) {
  uint32_t first = 0;
  CMKD_TRY(cmkd_pk_below(m, count, &first));
  return cmkd_pk_extend(m, first, kind);
}

static cmkd_status memo_put(cmkd_pk_machine *m, int width) {
  uint64_t index = 0;
  CMKD_TRY(cmkd_pk_take_number(m, width, &index));
  return cmkd_pk_memo_put(m, index);
}

static cmkd_status memo_get(cmkd_pk_machine *m, int width) {
  uint64_t index = 0;
  CMKD_TRY(cmkd_pk_take_number(m, width, &index));
  return cmkd_pk_memo_get(m, index);
}

static cmkd_status check_protocol(cmkd_pk_machine *m) {
  uint64_t protocol = 0;
  CMKD_TRY(cmkd_pk_take_number(m, 1, &protocol));
  return protocol <= 5 ? CMKD_OK : cmkd_pk_broken(m, "an unknown protocol");
}

static cmkd_status refuse(cmkd_pk_machine *m, uint8_t code) {
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
    if (refused[i].code == code)
      return cmkd_fail(m->err, CMKD_ERR_UNSUPPORTED,
                       "%s: refused: its pickle uses the opcode %s; only tensors in plain containers are read. Save a "
                       "plain state_dict() instead",
                       m->file, refused[i].name);
  return cmkd_fail(m->err, CMKD_ERR_FORMAT, "%s: damaged pickle: byte 0x%02x is no opcode; fetch the file again",
                   m->file, code);
}

static cmkd_status op_int(cmkd_pk_machine *m, int bytes) {
  uint64_t v;
  CMKD_TRY(cmkd_pk_take_number(m, bytes, &v));
  return cmkd_pk_push_new(
      m, (cmkd_pk_value){.kind = CMKD_PK_INT, .as.integer = bytes == 4 ? (int32_t)(uint32_t)v : (int64_t)v});
}

static cmkd_status step(cmkd_pk_machine *m, uint8_t code) {
  uint64_t number;
  switch (code) {
  case 0x80: return check_protocol(m);
  case 0x95: return cmkd_pk_take_number(m, 8, &number); /* FRAME: a hint for readers of streams */
  case '(': return cmkd_pk_mark(m);
  case 'N': return cmkd_pk_push(m, CMKD_PK_V_NONE);
  case 0x88: return cmkd_pk_push(m, CMKD_PK_V_TRUE);
  case 0x89: return cmkd_pk_push(m, CMKD_PK_V_FALSE);
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
  case ')': return cmkd_pk_push(m, CMKD_PK_V_EMPTY_TUPLE);
  case ']': return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_LIST});
  case '}': return cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_DICT});
  case 't': return push_marked_tuple(m);
  case 0x85: return push_small_tuple(m, 1);
  case 0x86: return push_small_tuple(m, 2);
  case 0x87: return push_small_tuple(m, 3);
  case 'a': return extend_by(m, CMKD_PK_LIST, 1);
  case 'e': return extend_marked(m, CMKD_PK_LIST);
  case 's': return extend_by(m, CMKD_PK_DICT, 2);
  case 'u': return extend_marked(m, CMKD_PK_DICT);
  case 'q': return memo_put(m, 1);
  case 'r': return memo_put(m, 4);
  case 0x94: return cmkd_pk_memo_put(m, m->memo_count);
  case 'h': return memo_get(m, 1);
  case 'j': return memo_get(m, 4);
  case 'c': return cmkd_pk_op_global(m);
  case 0x93: return cmkd_pk_op_stack_global(m);
  case 'R': return cmkd_pk_op_reduce(m);
  case 'Q': return cmkd_pk_op_persistent_id(m);
  case 'b': return cmkd_pk_op_build(m);
  default: return refuse(m, code);
  }
}

static cmkd_status run(cmkd_pk_machine *m, const uint8_t *bytes) {
  CMKD_TRY(cmkd_pk_start(m));
  if (m->at == m->end || *m->at != 0x80) return cmkd_pk_broken(m, "it does not begin with a protocol of 2 or more");
  while (m->at < m->end) {
    uint8_t code = *m->at++;
    if (code == '.') {
      CMKD_TRY(cmkd_pk_pop(m, &m->p->root));
      m->p->used = (size_t)(m->at - bytes);
      return CMKD_OK;
    }
    CMKD_TRY(step(m, code));
  }
  return cmkd_pk_broken(m, m->size == CMKD_MAX_PICKLE ? "it is larger than 16 MiB" : "truncated");
}

cmkd_status cmkd_pickle_load(const uint8_t *bytes, size_t size, const char *file, cmkd_pickle **out, cmkd_error *err) {
  *out = NULL;
  if (size > CMKD_MAX_PICKLE) size = CMKD_MAX_PICKLE;
  cmkd_pickle *p = calloc(1, sizeof *p);
  if (!p) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", file);
  cmkd_pk_machine m = {.p = p, .at = bytes, .end = bytes + size, .size = size, .file = file, .err = err};
  cmkd_status status = run(&m, bytes);
  cmkd_pk_stop(&m);
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
    if (k->kind == CMKD_PK_STRING && cmkd_pk_same(k->as.text, k->length, key)) found = &p->values[dict->as.item[i + 1]];
  }
  return found;
}
