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

#define CMKD_BACKEND_VERSION 4 /* of this table; a plugin with another one is refused by name */

/* One device; may hold many models. Not thread-safe, but backends are independent of each other. */
typedef struct cmkd_backend cmkd_backend;
/* uint8 images resident on the device, read-only, shared by its models. */
typedef struct cmkd_be_images cmkd_be_images;
/* Teacher logits resident on the device, as a cache stores them; shared by its models. */
typedef struct cmkd_be_rows cmkd_be_rows;
/* A graph with its parameters, optimizer state and buffers. */
typedef struct cmkd_be_model cmkd_be_model;

/* All zero is a proper choice. Strings are read by cmkd_backend_find() and open() and not kept. */
typedef struct cmkd_backend_options {
  int threads;           /* 0: all cores */
  int device;            /* index */
  const char *precision; /* NULL: "fp32" */
  /* cpu: "direct" or "onednn" computes convolutions; NULL: whichever is the faster one on this machine. "onednn" is
   * passed over where this build is without it. */
  const char *conv;
  /* cuda */
  const char *plugin; /* the shared object; NULL or empty: looked for where programs and libraries lie */
  const char *cudnn;  /* its shared object, which must be there; NULL or empty: where there is one; "off": without */
  const char *algorithm_file; /* where chosen convolution algorithms are remembered; NULL or empty: nowhere */
  const char *profile;        /* a file to which models that train write where their time went; NULL or empty: none */
  int check;                  /* wait after every operation and name the one that failed */
  int streamed;               /* images and teacher rows stay on the host */
  int skip_selfcheck;         /* trust the device unseen */
} cmkd_backend_options;

/* Images in host memory: pixels (n, h, w, c), labels (n) or NULL. */
typedef struct cmkd_image_set {
  const uint8_t *pixels;
  const int32_t *labels;
  uint32_t n;
  int h, w, c;
} cmkd_image_set;

/* What steps may carry beside images: `width` floats a row, by name. */
#define CMKD_MAX_TARGETS 8
enum { CMKD_TARGET_TEACHER = 0 }; /* "teacher", (classes): the first one of every model, read by `loss` */
typedef struct cmkd_target_spec {
  const char *name;
  int width;
} cmkd_target_spec;

/* One more term of the training objective: weight times the mean over rows of the mean squared difference between a
 * named output and a named target of the same width.
 * Like further targets, outputs beyond the network's two, cmkd_reduce and entropy_mean, no program sets one yet; every
 * backend computes it, and tests/test_seam.c and tests/simt/test_cuda_seam.c hold them to it. */
typedef struct cmkd_objective {
  const char *output, *target;
  double weight;
} cmkd_objective;

/* The all-reduce of data-parallel training, between backward and update: `gradients`, `count` floats in the memory of
 * the backend's device (host memory for cpu and ref), all parameters in one block, are summed or averaged in place over
 * ranks. The mean over the global batch is the hook's business (each rank's loss is the mean over its own rows). Called
 * once a step from the thread that runs it; a device backend calls it while the step is queued or captured: the hook
 * then only queues work on `stream` (NULL on the host). No program sets it yet; what whoever does must know:
 *
 * - Order and padding of the block are the backend's own, and `count` is not the number of parameters: only equal
 *   backends with equal graphs may be reduced together.
 * - In fp16 (cuda) gradients are still multiplied by the loss scale, which every rank keeps for itself. An overflow
 *   reaches all ranks through the sum, and all scales change alike; a rank that skips a step (below) lets them differ.
 * - Batch norm's statistics are of a rank's own rows, and its running ones are not reduced: they differ between ranks.
 * - A step with a bad row: cpu and ref return before the hook, and other ranks would wait for this one for ever; cuda
 *   calls it with gradients that may be NaN, and this rank alone leaves its parameters as they were. The hook needs a
 *   way to give up.
 * - Of a loss, the gate's mean entropy can be that of the global batch (cmkd_step.entropy_mean); DIST's columns
 *   correlate a rank's own rows. */
typedef struct cmkd_reduce {
  void *self;
  cmkd_status (*run)(void *self, float *gradients, size_t count, void *stream, cmkd_error *err); /* NULL: none */
} cmkd_reduce;

typedef struct cmkd_model_config {
  const cmkd_graph *graph; /* borrowed for the model's life */
  int batch;               /* most rows a step may have */
  int train;               /* 0: inference only, no gradients kept */
  float mean[4], std[4];   /* x = (pixel / 255 - mean) / std, per channel */
  cmkd_policy policy;      /* which view of an image a row's seed gives */
  const cmkd_loss *loss;   /* training; borrowed for the model's life */
  float momentum, weight_decay;
  int nesterov;
  double label_smoothing;
  double kappa; /* for the agreement figures' soft rank */
  /* Beyond `loss`, which acts on output "logits" and target "teacher". Names are borrowed for the model's life. */
  int targets; /* 0: "teacher" alone */
  cmkd_target_spec target[CMKD_MAX_TARGETS];
  int objectives;
  cmkd_objective objective[CMKD_MAX_OUTPUTS];
  cmkd_reduce reduce;
} cmkd_model_config;

/* A target's rows in one step: values (count, width); or, where an array is resident, row i is number index[i] of
 * `resident`, index (count). All NULL: this step has no such target. */
typedef struct cmkd_target {
  const float *values;
  const cmkd_be_rows *resident;
  const uint32_t *index;
} cmkd_target;

/* One step's input. All pointers are borrowed until read() or the next run(). */
typedef struct cmkd_step {
  int count;                            /* rows, 1 .. batch */
  const uint32_t *rows;                 /* (count) which images: sample ids */
  const uint64_t *seeds;                /* (count); NULL: every row clean */
  cmkd_target target[CMKD_MAX_TARGETS]; /* as in the model's configuration; [0] is "teacher" */
  double lr, epoch;                     /* epoch from 1, for loss warm-ups */
  /* Mean entropy of the teacher's rows over the global batch, for losses with a gate. 0, as a step that says nothing
   * of it has, stands for the mean over these rows; losses themselves take NaN for that (cmkd_step_entropy_mean). A
   * global mean of exactly 0 needs no value of its own: every row's entropy, and so these rows' mean, is 0 then. */
  double entropy_mean;
} cmkd_step;

/* What one training step produced. Sums over rows, so that partial batches weigh right. */
typedef struct cmkd_step_result {
  int count;
  cmkd_loss_result loss;    /* batch means */
  int top1, top5;           /* correct rows. Ties: a row counts when fewer than k classes score strictly higher,
                               ties broken by the lower class index */
  cmkd_agreement agreement; /* zero rows when there is no teacher */
  double objective[CMKD_MAX_OUTPUTS]; /* batch means of the further terms, unweighted */
} cmkd_step_result;

typedef enum cmkd_list { CMKD_LIST_TRAIN, CMKD_LIST_INFER } cmkd_list;
typedef enum cmkd_param_slot { CMKD_SLOT_VALUE, CMKD_SLOT_MOMENTUM } cmkd_param_slot;

typedef struct cmkd_backend_table {
  int version;
  const char *name;     /* "cpu"; for people: what callers decide by are the two facts below */
  int computes_off_cpu; /* 1: the host's cores are free while a step runs */
  /* Reduced precisions worth a try where less than fp32 will do, fastest first, NULL at the end; NULL: none. Not all
   * that open() knows: bf16 is never faster than fp16, which is more exact. */
  const char *const *precisions;
  cmkd_status (*open)(const cmkd_backend_options *options, cmkd_backend **out, cmkd_error *err);
  void (*close)(cmkd_backend *backend);
  const char *(*describe)(const cmkd_backend *backend); /* "cpu: 2 threads, oneDNN 2.6.3, avx2" */
  /* Copies or borrows (CPU) the host arrays, which must outlive the handle; `set` itself is copied. */
  cmkd_status (*images_create)(cmkd_backend *backend, const cmkd_image_set *set, cmkd_be_images **out, cmkd_error *err);
  void (*images_free)(cmkd_be_images *images);
  cmkd_status (*model_create)(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                              cmkd_error *err);
  void (*model_free)(cmkd_be_model *model);
  /* params[i]: host array of graph->param[i].count floats, or NULL to leave it alone. Buffers have no momentum. */
  cmkd_status (*upload)(cmkd_be_model *model, cmkd_param_slot slot, const float *const *params, cmkd_error *err);
  cmkd_status (*download)(cmkd_be_model *model, cmkd_param_slot slot, float *const *params, cmkd_error *err);
  /* Runs k steps. TRAIN: gather, augment, normalise, forward, loss, backward, update. INFER: forward with running
   * statistics folded; outputs[i], host memory (sum of counts, width of the graph's output i) or NULL, one entry for
   * each output of the graph; `outputs` itself may be NULL, and is not looked at by TRAIN. A row's logits depend on the
   * row and the step's count alone, never on its neighbours. May return before the device is done (TRAIN). Stops at the
   * first step with non-finite logits or a bad label: CMKD_ERR_VALUE from run() or read(), that step's
   * result.loss.bad_row set, no update applied. */
  cmkd_status (*run)(cmkd_be_model *model, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k,
                     float *const *outputs, cmkd_error *err);
  /* Waits, then copies out the results of the TRAIN steps run since the last read, oldest first; *k in: how
   * many fit, out: how many there were. */
  cmkd_status (*read)(cmkd_be_model *model, cmkd_step_result *results, int *k, cmkd_error *err);
  /* Optional (NULL), all three or none: memory for `rows` rows of teacher logits in the form in which codec "f32",
   * "f16" or "u8sqrt" stores them. CMKD_ERR_MEMORY where they do not fit beside what models need, CMKD_ERR_UNSUPPORTED
   * for other codecs: the caller then gives rows as floats, step by step. write copies rows [first, first + count) and
   * waits: data (count, classes); row_max, row_range (count) of u8sqrt, else NULL. A step may only name rows that were
   * written. */
  cmkd_status (*rows_create)(cmkd_backend *backend, const char *codec, uint64_t rows, int classes, cmkd_be_rows **out,
                             cmkd_error *err);
  cmkd_status (*rows_write)(cmkd_be_rows *rows, uint64_t first, uint64_t count, const void *data,
                            const uint16_t *row_max, const uint16_t *row_range, cmkd_error *err);
  void (*rows_free)(cmkd_be_rows *rows);
  /* Optional (NULL), both or none: what a resumed run needs beside its parameters to go on bit for bit (the algorithm
   * of each convolution, fp16's loss scale), as one line of JSON; caller frees. load comes before the first run; the
   * text of another device or library is passed over: *used 0. */
  cmkd_status (*save)(cmkd_be_model *model, char **text, cmkd_error *err);
  cmkd_status (*load)(cmkd_be_model *model, const char *text, int *used, cmkd_error *err);
  /* Optional (NULL): gradients of the last TRAIN step, for tests; laid out like the parameters. */
  cmkd_status (*gradients)(cmkd_be_model *model, float *const *params, cmkd_error *err);
} cmkd_backend_table;

/* "auto" (cuda where a device is found, else cpu), "cpu", "cuda", "cuda:N", "ref". An unknown name suggests the
 * nearest; "cuda" without a plugin, driver or device fails with one line that says what is missing. The table is
 * static. options: where the plugin is, and for "auto" with what the device is tried (precision and index are not
 * looked at); NULL: all defaults. */
cmkd_status cmkd_backend_find(const char *device, const cmkd_backend_options *options, const cmkd_backend_table **out,
                              cmkd_error *err);

/* N of "cuda:N", else 0: for cmkd_backend_options.device. */
int cmkd_backend_index(const char *device);

extern const cmkd_backend_table cmkd_backend_cpu, cmkd_backend_ref;

/* The CUDA plugin exports this symbol. */
#define CMKD_BACKEND_ENTRY "cmkd_backend_plugin"
typedef const cmkd_backend_table *cmkd_backend_entry(void);
#endif
