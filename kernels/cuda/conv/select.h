/* Inside algorithm selection: what select.c, algorithm.c, algorithm_cache.c and autotune.c share. Nobody else includes
 * this; kernels/cuda/conv/conv.h is the interface. */
#ifndef CMKD_KERNELS_CUDA_CONV_SELECT_H
#define CMKD_KERNELS_CUDA_CONV_SELECT_H
#include <jansson.h>
#include "kernels/cuda/conv/conv.h"
#include "kernels/cuda/conv/cudnn.h"
#include "kernels/cuda/runtime.h"

#define CONV_OWN "own" /* the name of our own kernels */
#define CONV_SEPARATE \
  "+epilogue" /* at the end of a name: a cuDNN plan without epilogue, our epilogue kernel after it */
enum { CONV_KEY_BYTES = 256, CONV_NAME_BYTES = 1024 };

struct cmkd_conv_selector {
  cmkd_cudnn *cudnn;
  void *stream;
  char *device;     /* GPU and cuDNN version as one text: the key in the file */
  char *cache_path; /* NULL: nothing is remembered */
  /* Each maps a request's key to an algorithm's name. */
  json_t *resumed;           /* from the state of the run that is resumed */
  json_t *selected;          /* by this selector */
  json_t *cached;            /* from the file */
  cmkd_conv_algorithm *live; /* list of algorithms in use: layers of equal shape share one, for a plan may take a second
                                to make */
};

struct cmkd_conv_algorithm {
  cmkd_conv_selector *selector;
  cmkd_conv_request request;
  cmkd_cudnn_plan *plan; /* NULL: our own kernels */
  int separate;          /* FORWARD_FUSED: the plan is a plain FORWARD, the epilogue is our kernel after it */
  char name[CONV_NAME_BYTES], key[CONV_KEY_BYTES];
  int users; /* references; 0: a candidate that nobody has been given yet */
  cmkd_conv_algorithm *next;
};

/* algorithm.c: takes the plan, also when it fails. */
cmkd_status cmkd_conv_algorithm_make(cmkd_conv_selector *selector, const cmkd_conv_request *request,
                                     cmkd_cudnn_plan *plan, int separate, cmkd_conv_algorithm **out, cmkd_error *err);

/* algorithm_cache.c */
void cmkd_conv_request_key(const cmkd_conv_request *request, char key[CONV_KEY_BYTES]);
/* The names of selector->device in the file at selector->cache_path, a new object; empty without file or entry, NULL
 * without memory. */
json_t *cmkd_conv_cache_read(const cmkd_conv_selector *selector);
/* Merges selector->cached into the file. One that cannot be written is given up (cache_path becomes NULL): nothing
 * depends on it. */
void cmkd_conv_cache_write(cmkd_conv_selector *selector);

/* autotune.c: drops candidates that fail or disagree with candidate[0], which is our own kernels and may not fail, and
 * takes the fastest of the rest; *winner: its index, 0 where no other is good. timed 0: candidate[1] alone is checked,
 * and nothing is timed. */
cmkd_status cmkd_conv_autotune(cmkd_conv_selector *selector, const cmkd_conv_request *request,
                               cmkd_conv_algorithm **candidate, int count, int timed, int *winner, cmkd_error *err);
#endif
