/* The stack machine of the pickle reader: values, a stack with marks, a memo; all opcodes work on it. Private to the
 * pickle_*.c files. Functions fail with a message in m->err that names m->file. */
#ifndef CMKD_FORMATS_WEIGHTS_PICKLE_MACHINE_H
#define CMKD_FORMATS_WEIGHTS_PICKLE_MACHINE_H
#include "formats/weights/pickle.h"

/* The first values of every pickle: constants that opcodes push. */
enum { CMKD_PK_V_NONE, CMKD_PK_V_TRUE, CMKD_PK_V_FALSE, CMKD_PK_V_EMPTY_TUPLE, CMKD_PK_V_FIRST_FREE };

typedef struct cmkd_pk_machine {
  cmkd_pickle *p;
  const uint8_t *at, *end; /* what is left of the pickle */
  size_t size;             /* of all of it */
  const char *file;
  uint32_t *stack; /* (height) value indices */
  uint32_t *marks; /* (mark_count) heights of the stack */
  uint32_t *memo;  /* (memo_capacity) value indices + 1; 0: not set */
  uint32_t height, stack_capacity, mark_count, mark_capacity, memo_count, memo_capacity;
  uint64_t copied; /* items that OrderedDict took from lists; bounded, so that one list used often does not multiply */
  cmkd_error *err;
} cmkd_pk_machine;

cmkd_status cmkd_pk_start(cmkd_pk_machine *m);                    /* the constant values */
void cmkd_pk_stop(cmkd_pk_machine *m);                            /* frees stack, marks and memo; the values stay */
cmkd_status cmkd_pk_broken(cmkd_pk_machine *m, const char *what); /* CMKD_ERR_FORMAT */
cmkd_status cmkd_pk_no_memory(cmkd_pk_machine *m);
/* `array` itself where it has room for one more item of `item` bytes behind `count`, or reallocated to twice the
 * capacity; NULL: no memory, the old array is as it was. */
void *cmkd_pk_grown(cmkd_pk_machine *m, void *array, uint32_t count, uint32_t *capacity, size_t item);
static inline cmkd_pk_value *cmkd_pk_value_at(cmkd_pk_machine *m, uint32_t index) { return &m->p->values[index]; }
int cmkd_pk_same(const uint8_t *text, size_t length, const char *word);

/* Input */
cmkd_status cmkd_pk_take(cmkd_pk_machine *m, uint64_t bytes, const uint8_t **out);
cmkd_status cmkd_pk_take_number(cmkd_pk_machine *m, int bytes, uint64_t *out); /* little-endian */

/* Stack */
cmkd_status cmkd_pk_push(cmkd_pk_machine *m, uint32_t value);
cmkd_status cmkd_pk_push_new(cmkd_pk_machine *m, cmkd_pk_value value);
cmkd_status cmkd_pk_pop(cmkd_pk_machine *m, uint32_t *out);
cmkd_status cmkd_pk_top(cmkd_pk_machine *m, uint32_t *out); /* as pop, but it stays */
cmkd_status cmkd_pk_mark(cmkd_pk_machine *m);
cmkd_status cmkd_pk_pop_mark(cmkd_pk_machine *m, uint32_t *first); /* the height it stood at */
/* The height of the stack without its `count` uppermost items, all of which the current mark leaves reachable. */
cmkd_status cmkd_pk_below(cmkd_pk_machine *m, uint32_t count, uint32_t *first);

/* Containers. stack[first .. height) becomes a tuple, or moves to the end of the list or dict at stack[first - 1]. */
cmkd_status cmkd_pk_push_tuple(cmkd_pk_machine *m, uint32_t first);
cmkd_status cmkd_pk_extend(cmkd_pk_machine *m, uint32_t first, cmkd_pk_kind kind);

/* Memo: names values by number, to be pushed again. */
cmkd_status cmkd_pk_memo_put(cmkd_pk_machine *m, uint64_t index); /* the uppermost value */
cmkd_status cmkd_pk_memo_get(cmkd_pk_machine *m, uint64_t index);
#endif
