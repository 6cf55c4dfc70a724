/* The stack machine of the pickle reader. See pickle_machine.h. */
#include "formats/weights/pickle_machine.h"
#include "base/bytes.h"
#include <stdlib.h>
#include <string.h>

cmkd_status cmkd_pk_broken(cmkd_pk_machine *m, const char *what) {
  return cmkd_fail(m->err, CMKD_ERR_FORMAT, "%s: damaged pickle: %s; fetch the file again", m->file, what);
}

cmkd_status cmkd_pk_no_memory(cmkd_pk_machine *m) {
  return cmkd_fail(m->err, CMKD_ERR_MEMORY, "%s: out of memory", m->file);
}

void *cmkd_pk_grown(cmkd_pk_machine *m, void *array, uint32_t count, uint32_t *capacity, size_t item) {
  if (count < *capacity) return array;
  uint32_t more = *capacity ? *capacity * 2 : 64;
  void *bigger = more > *capacity ? realloc(array, more * item) : NULL;
  if (bigger)
    *capacity = more;
  else
    cmkd_pk_no_memory(m);
  return bigger;
}

int cmkd_pk_same(const uint8_t *text, size_t length, const char *word) {
  return length == strlen(word) && !memcmp(text, word, length);
}

cmkd_status cmkd_pk_start(cmkd_pk_machine *m) {
  static const cmkd_pk_value first[] = {[CMKD_PK_V_NONE] = {.kind = CMKD_PK_NONE},
                                        [CMKD_PK_V_TRUE] = {.kind = CMKD_PK_BOOL, .as.integer = 1},
                                        [CMKD_PK_V_FALSE] = {.kind = CMKD_PK_BOOL, .as.integer = 0},
                                        [CMKD_PK_V_EMPTY_TUPLE] = {.kind = CMKD_PK_TUPLE}};
  cmkd_pk_value *values = cmkd_pk_grown(m, NULL, 0, &m->p->value_capacity, sizeof *values);
  if (!values) return CMKD_ERR_MEMORY;
  memcpy(values, first, sizeof first);
  m->p->values = values;
  m->p->value_count = CMKD_PK_V_FIRST_FREE;
  return CMKD_OK;
}

void cmkd_pk_stop(cmkd_pk_machine *m) {
  free(m->stack);
  free(m->marks);
  free(m->memo);
}

/* ---- input ---- */

cmkd_status cmkd_pk_take(cmkd_pk_machine *m, uint64_t bytes, const uint8_t **out) {
  if (bytes > (uint64_t)(m->end - m->at)) return cmkd_pk_broken(m, "truncated");
  *out = m->at;
  m->at += bytes;
  return CMKD_OK;
}

cmkd_status cmkd_pk_take_number(cmkd_pk_machine *m, int bytes, uint64_t *out) {
  const uint8_t *number = NULL;
  CMKD_TRY(cmkd_pk_take(m, (uint64_t)bytes, &number));
  *out = cmkd_load_little(number, bytes);
  return CMKD_OK;
}

/* ---- stack ---- */

/* The stack's lowest place that the current mark leaves reachable. */
static uint32_t lowest(const cmkd_pk_machine *m) { return m->mark_count ? m->marks[m->mark_count - 1] : 0; }

static cmkd_status runs_empty(cmkd_pk_machine *m) { return cmkd_pk_broken(m, "its stack runs empty"); }

cmkd_status cmkd_pk_push(cmkd_pk_machine *m, uint32_t value) {
  uint32_t *stack = cmkd_pk_grown(m, m->stack, m->height, &m->stack_capacity, sizeof *stack);
  if (!stack) return CMKD_ERR_MEMORY;
  m->stack = stack;
  m->stack[m->height++] = value;
  return CMKD_OK;
}

cmkd_status cmkd_pk_push_new(cmkd_pk_machine *m, cmkd_pk_value value) {
  cmkd_pickle *p = m->p;
  cmkd_pk_value *values = cmkd_pk_grown(m, p->values, p->value_count, &p->value_capacity, sizeof *values);
  if (!values) return CMKD_ERR_MEMORY;
  p->values = values;
  p->values[p->value_count] = value;
  return cmkd_pk_push(m, p->value_count++);
}

cmkd_status cmkd_pk_top(cmkd_pk_machine *m, uint32_t *out) {
  if (m->height <= lowest(m)) return runs_empty(m);
  *out = m->stack[m->height - 1];
  return CMKD_OK;
}

cmkd_status cmkd_pk_pop(cmkd_pk_machine *m, uint32_t *out) {
  CMKD_TRY(cmkd_pk_top(m, out));
  m->height--;
  return CMKD_OK;
}

cmkd_status cmkd_pk_mark(cmkd_pk_machine *m) {
  uint32_t *marks = cmkd_pk_grown(m, m->marks, m->mark_count, &m->mark_capacity, sizeof *marks);
  if (!marks) return CMKD_ERR_MEMORY;
  m->marks = marks;
  m->marks[m->mark_count++] = m->height;
  return CMKD_OK;
}

cmkd_status cmkd_pk_pop_mark(cmkd_pk_machine *m, uint32_t *first) {
  if (!m->mark_count) return cmkd_pk_broken(m, "no mark on its stack");
  *first = m->marks[--m->mark_count];
  return CMKD_OK;
}

cmkd_status cmkd_pk_below(cmkd_pk_machine *m, uint32_t count, uint32_t *first) {
  if (m->height - lowest(m) < count) return runs_empty(m);
  *first = m->height - count;
  return CMKD_OK;
}

/* ---- containers ---- */

cmkd_status cmkd_pk_push_tuple(cmkd_pk_machine *m, uint32_t first) {
  uint32_t count = m->height - first;
  if (!count) return cmkd_pk_push(m, CMKD_PK_V_EMPTY_TUPLE);
  uint32_t *items = malloc(count * sizeof *items);
  if (!items) return cmkd_pk_no_memory(m);
  memcpy(items, m->stack + first, count * sizeof *items);
  m->height = first;
  cmkd_status status = cmkd_pk_push_new(m, (cmkd_pk_value){.kind = CMKD_PK_TUPLE, .length = count, .as.item = items});
  if (status != CMKD_OK) free(items);
  return status;
}

/* Capacities of lists and dicts are powers of two from 4 on, so the length alone tells the capacity. */
static uint64_t capacity_of(uint64_t length) {
  uint64_t capacity = 4;
  while (capacity < length)
    capacity *= 2;
  return capacity;
}

cmkd_status cmkd_pk_extend(cmkd_pk_machine *m, uint32_t first, cmkd_pk_kind kind) {
  uint32_t count = m->height - first;
  if (first <= lowest(m)) return runs_empty(m);
  cmkd_pk_value *target = cmkd_pk_value_at(m, m->stack[first - 1]);
  if (target->kind != kind)
    return cmkd_pk_broken(m, kind == CMKD_PK_DICT ? "items are set in what is no dict"
                                                  : "items are appended to what is no list");
  if (kind == CMKD_PK_DICT && count % 2) return cmkd_pk_broken(m, "a key without a value");
  m->height = first;
  if (!count) return CMKD_OK;
  uint64_t want = (uint64_t)target->length + count;
  if (want > UINT32_MAX / 2) return cmkd_pk_broken(m, "too many items");
  if (!target->length || capacity_of(want) > capacity_of(target->length)) {
    uint32_t *bigger = realloc(target->length ? target->as.item : NULL, capacity_of(want) * sizeof *bigger);
    if (!bigger) return cmkd_pk_no_memory(m);
    target->as.item = bigger;
  }
  memcpy(target->as.item + target->length, m->stack + first, count * sizeof *m->stack);
  target->length = (uint32_t)want;
  return CMKD_OK;
}

/* ---- memo ---- */

cmkd_status cmkd_pk_memo_put(cmkd_pk_machine *m, uint64_t index) {
  uint32_t top = 0;
  CMKD_TRY(cmkd_pk_top(m, &top));
  /* writers count from 0, so larger numbers would only cost memory */
  if (index >= m->size) return cmkd_pk_broken(m, "a memo number larger than the pickle");
  if (index >= m->memo_capacity) {
    uint64_t capacity = m->memo_capacity ? m->memo_capacity : 256;
    while (capacity <= index)
      capacity *= 2;
    uint32_t *bigger = realloc(m->memo, capacity * sizeof *bigger);
    if (!bigger) return cmkd_pk_no_memory(m);
    memset(bigger + m->memo_capacity, 0, (capacity - m->memo_capacity) * sizeof *bigger);
    m->memo = bigger;
    m->memo_capacity = (uint32_t)capacity;
  }
  m->memo_count += m->memo[index] == 0;
  m->memo[index] = top + 1;
  return CMKD_OK;
}

cmkd_status cmkd_pk_memo_get(cmkd_pk_machine *m, uint64_t index) {
  if (index >= m->memo_capacity || !m->memo[index]) return cmkd_pk_broken(m, "a memo number that was never set");
  return cmkd_pk_push(m, m->memo[index] - 1);
}
