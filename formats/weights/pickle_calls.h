/* What a pickle may name and call: OrderedDict, and PyTorch's tensors and storages. Everything else is refused by name;
 * nothing is ever executed. Private to the pickle_*.c files. */
#ifndef CMKD_FORMATS_WEIGHTS_PICKLE_CALLS_H
#define CMKD_FORMATS_WEIGHTS_PICKLE_CALLS_H
#include "formats/weights/pickle_machine.h"

/* One opcode each, read already but for its argument. */
cmkd_status cmkd_pk_op_global(cmkd_pk_machine *m);        /* two lines: module, name */
cmkd_status cmkd_pk_op_stack_global(cmkd_pk_machine *m);  /* the same from the stack */
cmkd_status cmkd_pk_op_persistent_id(cmkd_pk_machine *m); /* names a storage */
cmkd_status cmkd_pk_op_reduce(cmkd_pk_machine *m);        /* calls a global */
cmkd_status cmkd_pk_op_build(cmkd_pk_machine *m);         /* gives an object its state */
#endif
