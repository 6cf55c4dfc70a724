/* The backend table: create / upload / run(list, k) / read back. A backend is arithmetic on a device behind this table;
 * nothing above kernels/ knows which one it talks to. `cpu` is linked in, `ref` (double, plain loops) too; `cuda` is a
 * shared object opened at run time. No operation of a list returns a value to the host: what a step produced is read
 * back afterwards, many steps at once. */
#ifndef CMKD_KERNELS_BACKEND_H
#define CMKD_KERNELS_BACKEND_H
#include <stdint.h>
#include "cmkd/loss.h"
#include "cmkd/status.h"
#include "cmkd/views.h"
#include "kernels/graph.h"

#define CMKD_BACKEND_VERSION 2 /* of this table; a plugin with another one is refused by name */

typedef struct cmkd_backend
    cmkd_backend; /* one device; may hold many models; not thread-safe, but backends are independent */
typedef struct cmkd_be_images cmkd_be_images; /* uint8 images resident on the device, read-only, shared by its models */
typedef struct cmkd_be_rows
    cmkd_be_rows; /* teacher logits resident on the device, as a cache stores them; shared by its models */
typedef struct cmkd_be_model cmkd_be_model; /* a graph with its parameters, optimizer state and buffers */

typedef struct cmkd_backend_options {
  int threads;           /* 0: all cores */
  int device;            /* index */
  const char *precision; /* NULL: "fp32" */
} cmkd_backend_options;

typedef struct cmkd_model_config {
  const cmkd_graph *graph; /* borrowed for the model's life */
  int batch;               /* most rows a step may have */
  int train;               /* 0: inference only, no gradients kept */
  float mean[4], std[4];   /* x = (pixel / 255 - mean) / std, per channel */
  cmkd_policy policy;      /* how a row's seed moves its pixels */
  const cmkd_loss *loss;   /* training; borrowed for the model's life */
  float momentum, weight_decay;
  int nesterov;
  double label_smoothing;
  double kappa; /* for the agreement figures' soft rank */
} cmkd_model_config;

/* One step's input. All pointers are borrowed until cmkd read() or the next run(). */
typedef struct cmkd_step {
  int count;             /* rows, 1 .. batch */
  const uint32_t *rows;  /* (count) positions in the images */
  const uint64_t *seeds; /* (count); NULL: every row clean */
  const float *teacher;  /* (count, classes) or NULL */
  double lr, epoch;      /* epoch from 1, for loss warm-ups */
  /* Instead of `teacher`, where logits are resident: row i's are teacher_rows[teacher_index[i]]; (count) or NULL */
  const cmkd_be_rows *teacher_rows;
  const uint32_t *teacher_index;
} cmkd_step;

/* What one training step produced. Sums over rows, so that partial batches weigh right. */
typedef struct cmkd_step_result {
  int count;
  cmkd_loss_result loss;    /* batch means */
  int top1, top5;           /* correct rows. Ties: a row counts when fewer than k classes score strictly higher,
                               ties broken by the lower class index */
  cmkd_agreement agreement; /* zero rows when there is no teacher */
} cmkd_step_result;

typedef enum cmkd_list { CMKD_LIST_TRAIN, CMKD_LIST_INFER } cmkd_list;
typedef enum cmkd_param_slot { CMKD_SLOT_VALUE, CMKD_SLOT_MOMENTUM } cmkd_param_slot;

typedef struct cmkd_backend_table {
  int version;
  const char *name; /* "cpu" */
  cmkd_status (*open)(const cmkd_backend_options *options, cmkd_backend **out, cmkd_error *err);
  void (*close)(cmkd_backend *backend);
  const char *(*describe)(const cmkd_backend *backend); /* "cpu: 2 threads, oneDNN 2.6.3, avx2" */
  /* Copies or borrows (CPU) the host arrays, which must outlive the handle. pixels (n, h, w, c), labels (n). */
  cmkd_status (*images_create)(cmkd_backend *backend, const uint8_t *pixels, const int32_t *labels, uint32_t n, int h,
                               int w, int c, cmkd_be_images **out, cmkd_error *err);
  void (*images_free)(cmkd_be_images *images);
  cmkd_status (*model_create)(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                              cmkd_error *err);
  void (*model_free)(cmkd_be_model *model);
  /* params[i]: host array of graph->param[i].count floats, or NULL to leave it alone. Momentum of buffers is ignored.
   */
  cmkd_status (*upload)(cmkd_be_model *model, cmkd_param_slot slot, const float *const *params, cmkd_error *err);
  cmkd_status (*download)(cmkd_be_model *model, cmkd_param_slot slot, float *const *params, cmkd_error *err);
  /* Runs k steps. TRAIN: gather, augment, normalise, forward, loss, backward, update. INFER: forward with running
   * statistics folded; logits (sum of counts, classes) and features (sum of counts, d) into host arrays, either may be
   * NULL. A row's logits depend on the row and the step's count alone, never on its neighbours. May return before the
   * device is done (TRAIN). Stops at the first step with non-finite logits or a bad label: CMKD_ERR_VALUE from run() or
   * read(), that step's result.loss.bad_row set, no update applied. */
  cmkd_status (*run)(cmkd_be_model *model, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k,
                     float *logits, float *features, cmkd_error *err);
  /* Waits, then hands over the results of the TRAIN steps run since the last read, oldest first; *k in: room, out: how
   * many. */
  cmkd_status (*read)(cmkd_be_model *model, cmkd_step_result *results, int *k, cmkd_error *err);
  /* Optional (NULL), all three or none: room for `rows` rows of teacher logits in the form in which codec "f32", "f16"
   * or "u8sqrt" stores them. CMKD_ERR_MEMORY where they do not fit beside what models need, CMKD_ERR_UNSUPPORTED for
   * other codecs: the caller then gives rows as floats, step by step. write copies rows [first, first + count) and
   * waits: data (count, classes); row_max, row_range (count) of u8sqrt, else NULL. A step may only name rows that were
   * written. */
  cmkd_status (*rows_create)(cmkd_backend *backend, const char *codec, uint64_t rows, int classes, cmkd_be_rows **out,
                             cmkd_error *err);
  cmkd_status (*rows_write)(cmkd_be_rows *rows, uint64_t first, uint64_t count, const void *data,
                            const uint16_t *row_max, const uint16_t *row_range, cmkd_error *err);
  void (*rows_free)(cmkd_be_rows *rows);
  /* Optional (NULL), both or none: what a resumed run needs beside its parameters to go on bit for bit (who computes
   * each convolution, fp16's loss scale), as one line of JSON; caller frees. load comes before the first run; the text
   * of another device or library is passed over: *used 0. */
  cmkd_status (*save)(cmkd_be_model *model, char **text, cmkd_error *err);
  cmkd_status (*load)(cmkd_be_model *model, const char *text, int *used, cmkd_error *err);
  /* Optional (NULL): gradients of the last TRAIN step, for tests; laid out like the parameters. */
  cmkd_status (*gradients)(cmkd_be_model *model, float *const *params, cmkd_error *err);
} cmkd_backend_table;

/* "auto" (cuda where a device is found, else cpu), "cpu", "cuda", "cuda:N", "ref". An unknown name suggests the
 * nearest; "cuda" without a plugin, driver or device fails with one line that says what is missing. The table is
 * static. */
cmkd_status cmkd_backend_find(const char *device, const cmkd_backend_table **out, cmkd_error *err);

/* N of "cuda:N", else 0: for cmkd_backend_options.device. */
int cmkd_backend_index(const char *device);

extern const cmkd_backend_table cmkd_backend_cpu, cmkd_backend_ref;

/* The CUDA plugin exports this symbol. */
#define CMKD_BACKEND_ENTRY "cmkd_backend_plugin"
typedef const cmkd_backend_table *cmkd_backend_entry(void);
#endif
