/* Implementations that tests/check_vectors.c tries beside `ref` and `cpu`, where they are linked in: each is a weak
 * symbol, so the program builds without them and says which are missing. */
#ifndef CMKD_TESTS_VECTORS_H
#define CMKD_TESTS_VECTORS_H
#include "cmkd/loss.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmkd_vectors_hook {
  const char *name; /* "emulated", "cuda" */
  /* 1 when it can run here; 0 with *why set to a static line ("no device") */
  int (*ready)(const char **why);
  /* Like cmkd_loss_eval on host buffers; the hook moves them to wherever its kernels run, and brings its own scratch.
   */
  cmkd_status (*eval)(const cmkd_loss *loss, const cmkd_loss_batch *batch, cmkd_loss_result *result, cmkd_error *err);
} cmkd_vectors_hook;

extern const cmkd_vectors_hook cmkd_vectors_emulated __attribute__((weak)), cmkd_vectors_cuda __attribute__((weak));

#ifdef __cplusplus
}
#endif
#endif
