/* What the C files of the CUDA backend share: a device with its stream, images, a model with its memory. Internal to
 * kernels/cuda.
 *
 *   plugin.c   the table; looking for a device
 *   selfcheck.c is the device to be trusted?
 *   resident.c images and teacher rows in device memory
 *   model.c    a model's memory, parameters in and out
 *   params.c   layouts: PyTorch's <-> the device's; batch norm folded for inference
 *   list.c     a list queued op by op
 *   state.c    what a resumed run finds again
 *   profile.c  where a step's time goes, on request
 *   run.c      steps: input through pinned memory, captured graphs, results
 *
 * One stream does everything in order; a side stream takes what nobody waits for until the step's end. */
#ifndef CMKD_KERNELS_CUDA_BACKEND_H
#define CMKD_KERNELS_CUDA_BACKEND_H
#include "kernels/backend.h"
#include "kernels/plan.h"
#include "kernels/cuda/conv/conv.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/step.h"

struct cmkd_backend {
  int device, tf32;
  cmkd_dtype dtype; /* of activations and of the weights that convolutions read */
  char precision[8], name[256], text[400];
  cudaStream_t stream, side;
  cudaEvent_t fork, join;
  cmkd_cudnn *cudnn; /* NULL: our own kernels do everything */
  cmkd_conv_selector *selector;
  void *workspace;
  size_t workspace_bytes;   /* shared by all models: they take turns on one stream */
  int workspace_generation; /* graphs captured before the last move are stale */
  char *profile;            /* file that models write where their time went to; NULL: none */
  int check;                /* no graphs, wait after every operation and name the one that failed */
  int streamed;             /* images stay on the host */
  uint64_t serial;          /* of the last images or rows: captured graphs know them by it, addresses come again */
};

struct cmkd_be_images {
  cmkd_backend *backend;
  const uint8_t *pixels;
  const int32_t *labels; /* the host's, borrowed */
  uint8_t *resident;     /* the same pixels in device memory; NULL: they go through the queue, row by row */
  uint32_t n;
  int h, w, c;
  uint64_t serial;
};

struct cmkd_be_rows {
  cmkd_backend *backend;
  cmkd_dtype dtype; /* CMKD_F32, CMKD_F16; CMKD_U8: u8sqrt */
  uint64_t n;
  int classes;
  char *data;
  uint16_t *row_max, *row_range; /* (n, classes), (n) */
  uint64_t serial;
};

/* Where an op's numbers lie, in elements. */
typedef struct cuda_op {
  int64_t weight, bias; /* in value, momentum, grad, copy; -1: none */
  int64_t scale, shift; /* NORM: gamma and beta, likewise */
  size_t channel;       /* NORM: first of its channels in the statistics; convolutions: in the inference biases */
} cuda_op;

/* Who computes the convolutions of a list at one number of rows: choice[op][pass]. from16 (values / CMKD_CUDA_CHUNK):
 * whose weight gradients are then 16 bits wide; host, and NULL or device memory. */
typedef struct cuda_conv_algorithms {
  int count, infer;
  cmkd_conv_algorithm *(*algorithm)[CMKD_CONV_BACKWARD_WEIGHTS + 1];
  uint8_t *from16_host, *from16;
  unsigned loaded; /* bits: such a step has run with that kind of teacher, so its kernels are on the device */
} cuda_conv_algorithms;

typedef struct cuda_graph {
  cudaGraphExec_t exec;
  const cmkd_be_images *images;
  const cmkd_be_rows *rows;
  uint64_t images_serial, rows_serial;         /* theirs; 0 without rows */
  int list, count, teacher, steps, generation; /* steps in a row; workspace_generation at capture */
  uint64_t used;                               /* for eviction: the last use */
} cuda_graph;

typedef enum cuda_class {
  CUDA_INPUT,
  CUDA_CONV_FORWARD,
  CUDA_CONV_DATA,
  CUDA_CONV_WEIGHTS,
  CUDA_NORM,
  CUDA_OTHER,
  CUDA_LOSS,
  CUDA_UPDATE,
  CUDA_CLASSES
} cuda_class; /* of work, in a profile */
typedef struct cuda_profile cuda_profile;

enum { CUDA_GRAPHS = 16, CUDA_ALGORITHMS = 16, CUDA_RESULTS = 256, CUDA_HALVES = 2, CUDA_PIXELS = 1, CUDA_TEACHER = 2 };

struct cmkd_be_model {
  cmkd_backend *backend;
  cmkd_model_config config;
  const cmkd_graph *graph;
  cuda_op *op;
  int *folded; /* (ops): the batch norm that a convolution takes in at inference, or -1 */
  cmkd_plan train, infer;
  /* parameters, float; one allocation each for what training and inference need */
  char *memory, *arena;           /* device: everything small; activations and gradients */
  int64_t values;                 /* elements of each array below, a multiple of CMKD_CUDA_CHUNK */
  size_t channels, biases;        /* of all norms; of all convolutions */
  float *value, *momentum, *grad; /* (values) */
  void *copy, *grad16;            /* (values) of a 16-bit dtype, else NULL */
  float *mean, *var, *batch_mean, *batch_var, *batch_rstd, *rate;
  int32_t *plane; /* (channels) */
  void *fold_weight;
  float *fold_bias; /* inference: (values) of dtype, (biases) */
  double *norm_partial;
  float *logits, *logits_grad, *features, *pixel_table;
  void *loss_scratch, *agreement_scratch;
  cmkd_cuda_state *state;
  cmkd_cuda_input input;
  cmkd_step_result *results; /* (CUDA_RESULTS) */
  /* the queue: two halves, so that one is filled while the device works through the other; each half has a slot for
   * where the cursors are to stand, then `slots` steps */
  char *queue, *staging; /* device, pinned host: (halves, 1 + slots, stride) */
  cmkd_cuda_queue layout;
  int slots;
  unsigned carries; /* CUDA_PIXELS, CUDA_TEACHER: what a slot has room for */
  cudaEvent_t taken[CUDA_HALVES];
  int in_flight[CUDA_HALVES], half;
  float *out;
  size_t out_floats;
  int out_steps; /* pinned: logits and features of so many inference steps; made by the first */
  /* host */
  float *host; /* (values): uploads, downloads */
  int fold_stale;
  cuda_conv_algorithms algorithms[CUDA_ALGORITHMS];
  int algorithms_count;
  int trained_count; /* rows of the last TRAIN step: whose gradients there are */
  cuda_graph captured[CUDA_GRAPHS];
  uint64_t clock;
  cuda_profile *profile; /* NULL: not asked for */
  int pending;           /* results on the device that nobody has fetched */
  cmkd_step_result *result;
  int results_count, results_capacity;
};

static inline size_t cuda_dtype_size(cmkd_dtype dtype) { return dtype == CMKD_F32 ? 4 : 2; }
static inline int cuda_is_conv(const cmkd_op *op) { return op->kind == CMKD_OP_CONV || op->kind == CMKD_OP_LINEAR; }

/* plugin.c: CMKD_OK or one line: what was done, what the runtime says, and what to do about it */
cmkd_status cmkd_cuda_status(cudaError_t error, const char *what, cmkd_error *err);

/* plugin.c: makes the backend's device the calling thread's; every function of the table begins with it, for there may
 * be several backends and threads */
cmkd_status cmkd_cuda_use(const cmkd_backend *b, cmkd_error *err);

/* plugin.c: copies of pageable memory, behind everything that was queued before; both wait */
cmkd_status cmkd_cuda_put(cmkd_backend *b, void *device, const void *host, size_t bytes, const char *what,
                          cmkd_error *err);
cmkd_status cmkd_cuda_get(cmkd_backend *b, void *host, const void *device, size_t bytes, const char *what,
                          cmkd_error *err);

/* selfcheck.c: CMKD_ERR_DEVICE where two steps of a small network differ from the CPU backend's by more than the
 * precision explains */
cmkd_status cmkd_cuda_selfcheck(const cmkd_backend_table *table, cmkd_backend *backend, cmkd_error *err);

/* resident.c */
cmkd_status cmkd_cuda_images_create(cmkd_backend *b, const cmkd_image_set *set, cmkd_be_images **out, cmkd_error *err);
void cmkd_cuda_images_free(cmkd_be_images *images);
cmkd_status cmkd_cuda_rows_create(cmkd_backend *b, const char *codec, uint64_t rows, int classes, cmkd_be_rows **out,
                                  cmkd_error *err);
cmkd_status cmkd_cuda_rows_write(cmkd_be_rows *rows, uint64_t first, uint64_t count, const void *data,
                                 const uint16_t *row_max, const uint16_t *row_range, cmkd_error *err);
void cmkd_cuda_rows_free(cmkd_be_rows *rows);

/* model.c */
cmkd_status cmkd_cuda_model_create(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                                   cmkd_error *err);
void cmkd_cuda_model_free(cmkd_be_model *model);
cmkd_status cmkd_cuda_upload(cmkd_be_model *model, cmkd_param_slot slot, const float *const *params, cmkd_error *err);
cmkd_status cmkd_cuda_download(cmkd_be_model *model, cmkd_param_slot slot, float *const *params, cmkd_error *err);
cmkd_status cmkd_cuda_gradients(cmkd_be_model *model, float *const *params, cmkd_error *err);

/* params.c. `wide` is an array of m->values floats in device layout. */
void cmkd_cuda_param_store(const cmkd_be_model *m, int param, const float *from, float *wide);
void cmkd_cuda_param_load(const cmkd_be_model *m, int param, const float *wide, float *to);
/* Weights and biases as inference reads them: batch norm folded in double. value: (values), mean, var: (channels);
 * weight (values), bias (biases). */
void cmkd_cuda_fold(const cmkd_be_model *m, const float *value, const float *mean, const float *var, float *weight,
                    float *bias);

/* state.c */
cmkd_status cmkd_cuda_save(cmkd_be_model *model, char **text, cmkd_error *err);
cmkd_status cmkd_cuda_load(cmkd_be_model *model, const char *text, int *used, cmkd_error *err);

/* profile.c; mark: what was queued since the last mark is of that class */
cmkd_status cmkd_cuda_profile_open(cmkd_be_model *m, cmkd_error *err);
void cmkd_cuda_profile_mark(cmkd_be_model *m, cuda_class class);
void cmkd_cuda_profile_nodes(cmkd_be_model *m, int nodes);
cmkd_status cmkd_cuda_profile_step(cmkd_be_model *m, cmkd_error *err);
void cmkd_cuda_profile_close(cmkd_be_model *m);

/* list.c */
cmkd_cuda_conv_shape cmkd_cuda_shape_of(const cmkd_be_model *m, int op, int count);
/* Decides who computes each convolution at `count` rows and sees that there is workspace; may wait and allocate, so not
 * while capturing. */
cmkd_status cmkd_cuda_prepare(cmkd_be_model *m, cmkd_list list, int count, cmkd_error *err);
void cmkd_cuda_algorithms_free(cmkd_be_model *m, cuda_conv_algorithms *algorithms);
cuda_conv_algorithms *cmkd_cuda_algorithms_for(cmkd_be_model *m, cmkd_list list, int count); /* NULL: not prepared */
/* Queues one step: input from the queue, everything, its result. teacher: its rows are in the queue; rows: they are
 * resident. */
cmkd_status cmkd_cuda_queue_step(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images,
                                 const cmkd_be_rows *rows, int count, int teacher, cmkd_error *err);

/* run.c */
cmkd_status cmkd_cuda_run(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k,
                          float *const *outputs, cmkd_error *err);
cmkd_status cmkd_cuda_read(cmkd_be_model *m, cmkd_step_result *results, int *k, cmkd_error *err);
void cmkd_cuda_forget_graphs(cmkd_be_model *m);
#endif
