/* Training students: a session holds what many students share, a student what is its own. docs/examples/train.c is a
 * whole program over this header.
 *
 *   session   the data set's two splits, the teacher (a cache of its logits, or a live one), the device with the images
 *             on it. Read-only while students train.
 *   student   network, weights, optimizer, loss, schedule, random seed, order of samples, and the folder of its run.
 *
 * An epoch is cmkd_student_begin, cmkd_student_step until nothing is left, cmkd_student_end. No call lasts longer than
 * the steps it was asked for (cmkd_student_end: than a test), and any number of students of one session may take turns
 * between any two calls: each computes the bits that it computes alone, and that `cmkd-train` computes with the same
 * settings and number of threads. (On cuda: with the same convolution algorithms, which a session chooses by timing;
 * docs/cuda.md.) A student that fails leaves the others as they are.
 *
 * Threads: calls on one session and on its students must not overlap in time; sessions are independent of each other.
 * The library's own threads compute, and read ahead in a cache while an epoch is under way; they call no function of
 * yours.
 *
 * Errors: every function that can fail returns a status and fills `err` (may be NULL) with one line. Messages call an
 * option by its name on the command line of cmkd-train: "--teacher-batch" is the field teacher_batch. A value outside
 * its range is CMKD_ERR_USAGE. */
#ifndef CMKD_TRAIN_H
#define CMKD_TRAIN_H
#include <stdint.h>
#include "cmkd/api.h"
#include "cmkd/dataset.h"
#include "cmkd/status.h"
#include "cmkd/teacher.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmkd_session cmkd_session;
typedef struct cmkd_student cmkd_student;

/* Fill with cmkd_session_options_default, then change what differs. NULL, 0 and NaN mean the default that is named.
 * Strings are copied by cmkd_session_open. */
typedef struct cmkd_session_options {
  const char *data;            /* data set: NAME or NAME:DIR; NULL: the name in the cache, else fashion-mnist */
  cmkd_dataset_options search; /* folders in which data sets are searched; strings borrowed during the call */
  const char *cache;           /* file of a teacher cache; NULL: none */
  /* Or a teacher that runs live: a weight file, or a function of pixels. With no teacher students learn from labels.
   * The callback is copied but for its `self`, which must outlive the session; it runs on the thread that opens or
   * trains. Its batch and identity are its own: teacher_batch to teacher_std are for weight files. */
  const char *teacher;
  const cmkd_teacher_callback *callback;
  const char *augment; /* none, flip, crop, crop+flip; NULL: the cache's, else what is usual for the data set */
  /* Up to teacher_batch these may repeat what a cache says, else CMKD_ERR_MISMATCH; teacher_arch to teacher_std are for
   * `teacher` alone. What does not fit the kind of teacher is CMKD_ERR_USAGE. */
  const char *views;    /* live: augmented views of an image, or "all" (also NULL): every variant of the augmentation */
  uint64_t cache_seed;  /* live: seed of the views, as cmkd-cache build --seed */
  int cache_seed_given; /* with a cache: 1: one of another seed is refused; 0: cache_seed is not looked at */
  int clean_view;       /* live: 1: the unaugmented image is one more view */
  int64_t teacher_batch;                 /* live: images of one pass of the teacher, 1 to 65536; 0: 128 */
  const char *teacher_arch;              /* live: network of a weight file that does not name it; NULL: it does */
  float teacher_mean[3], teacher_std[3]; /* live: its normalisation of pixels / 255; NaN: in the weight file */
  /* The teacher's logits of the whole test split in order: of the same weights, with a clean view or without
   * augmentation. NULL: teacher.test.h5 beside teacher.h5, if it is there. */
  const char *test_cache;
  int64_t stream_memory; /* MiB of decompressed rows that a student reads ahead, where they do not fit on
                            the device; 0: 1024 */
  const char *device;    /* auto, cpu, cuda, cuda:N, ref; NULL: auto */
  const char *precision; /* fp32; on cuda also tf32, bf16, fp16; NULL: fp32 */
  int64_t threads;       /* of the CPU; 0: all cores */
} cmkd_session_options;
CMKD_API void cmkd_session_options_default(cmkd_session_options *options);

/* Called on the thread that called the library, while something takes long. NULL for the whole struct or for any of its
 * functions: it is not called. */
typedef struct cmkd_watch {
  void *self;              /* handed to each function */
  int (*stop)(void *self); /* asked about every thousand images; non-zero ends the call with CMKD_ERR_INTERRUPTED */
  void (*progress)(void *self, uint64_t done, uint64_t total); /* images */
} cmkd_watch;

/* Opens data, teacher and device, and checks them against each other. *out is NULL on failure. */
CMKD_API cmkd_status cmkd_session_open(const cmkd_session_options *options, cmkd_session **out, cmkd_error *err);
/* Every student of the session must be closed before. NULL does nothing. */
CMKD_API void cmkd_session_close(cmkd_session *session);
/* The teacher's logits of the test split, from which students compute test_pearson and test_spearman; without this call
 * those are NaN, and nothing else differs. A live teacher runs over the whole split here. A cache without logits of the
 * test split is no failure unless test_cache asked for them: *note (may be NULL) then says why, owned by the session;
 * else it is NULL. Call before the first student ends an epoch; nothing happens a second time, or without a teacher. */
CMKD_API cmkd_status cmkd_session_load_test_logits(cmkd_session *session, const cmkd_watch *watch, const char **note,
                                                   cmkd_error *err);
/* What computes, as one line; owned by the session. */
CMKD_API const char *cmkd_session_device(const cmkd_session *session);

/* Fill with cmkd_student_options_default, then change what differs. NULL, 0 and NaN mean the default that is named.
 * Strings are copied by cmkd_student_open. */
typedef struct cmkd_student_options {
  const char *arch;       /* network, as `cmkd-train nets` lists them; NULL: resnet20, resnet8 for MNIST-like data */
  const char *loss;       /* docs/losses.md; NULL: cmkd, without a teacher ce */
  double dkd_beta;        /* of a dkd term that names no beta; NaN: 8 */
  int64_t samples, val;   /* the first `samples` of the split (0: all), of which `val` are held out to choose the best
                             epoch by (0: none; the test split chooses) */
  int64_t epochs;         /* 1 to 100000; 0: 240, 30 for MNIST-like data */
  int64_t batch;          /* images of a step, 1 to 65536; 0: 64 */
  double lr;              /* above 0; NaN: 0.05, 0.01 for ShuffleNet and MobileNet */
  const char *schedule;   /* step, cosine, constant; NULL: step */
  const char *milestones; /* step: the rate falls to a tenth after these epochs, "150,180,210"; NULL: 5/8, 3/4, 7/8 */
  double warmup;          /* epochs of linear warm-up, from 0; NaN: 0 */
  double momentum;        /* 0 to 0.999999; NaN: 0.9 */
  int nesterov;           /* 1: Nesterov's momentum */
  double weight_decay;    /* 0 to 1; NaN: 0.0005 */
  double label_smoothing; /* of the cross-entropy, 0 to 0.999999; NaN: 0 */
  float mean[3], std[3];  /* the student's normalisation of pixels / 255, both or neither; NaN: the data set's */
  int64_t shuffle_block;  /* images shuffled as one, for caches larger than memory; 0: all are shuffled freely */
  uint64_t seed;          /* of weights, order of samples and of views; default 1 */
  const char *out;        /* folder of the run, created; NULL: runs/ARCH-LOSS-SEED */
  /* 1: goes on, bit-exactly, with the run in `out`, or begins one if there is none; 0: a folder with a run is
   * CMKD_ERR_MISMATCH. A folder in use, by another student of this process too, is CMKD_ERR_IO. */
  int resume;
  int64_t eval_every; /* epochs from one test to the next; 0: 1. The last epoch is always tested */
  int64_t save_every; /* steps after which the state is saved, beside the end of each epoch; 0: never */
  int log_steps;      /* 1: a line a step in steps.jsonl */
} cmkd_student_options;
CMKD_API void cmkd_student_options_default(cmkd_student_options *options);

/* Builds the network, locks the folder and loads the run in it where `resume` asks for that. Other settings than those
 * of the run in the folder are CMKD_ERR_MISMATCH. The session must outlive the student. *out is NULL on failure. */
CMKD_API cmkd_status cmkd_student_open(cmkd_session *session, const cmkd_student_options *options, cmkd_student **out,
                                       cmkd_error *err);
/* Saves nothing: what was not saved is trained again after a resume. NULL does nothing. */
CMKD_API void cmkd_student_close(cmkd_student *student);

/* The values of one epoch; NaN where not measured. Accuracies in percent, losses as means over images; correlations are
 * the mean over images of the correlation between the logits of student and teacher. */
typedef struct cmkd_score {
  int64_t epoch;                                             /* from 1; 0: none yet */
  double top1, top5, test_loss, test_pearson, test_spearman; /* on the test split */
  double val_top1;                                           /* on the images that are held out */
  double loss, train_top1, train_pearson, train_spearman;    /* of the training steps of the epoch */
  double blocks; /* mean number of blocks of the soft rank of a row, as a share of the classes (docs/losses.md) */
} cmkd_score;

typedef struct cmkd_epoch_report {
  cmkd_score score;
  double lr;           /* of the first step */
  double seconds;      /* of training and test together */
  double images_per_s; /* of training alone */
  uint32_t view;       /* of the teacher, which the epoch used; 0 without one */
} cmkd_epoch_report;

/* Begins the next epoch, or goes on with one that was cut: all steps that were saved are skipped. The first call of a
 * student writes its folder. Inside an epoch it only drops what was read ahead. After the last epoch: CMKD_ERR_VALUE.
 */
CMKD_API cmkd_status cmkd_student_begin(cmkd_student *student, cmkd_error *err);
/* Trains up to `most` steps and waits for them. Never more than 64 at once, nor more than 16 MB of teacher logits (but
 * one step always); 0 asks for as many as that. The rows of the steps after them are read ahead meanwhile. *more: 0
 * once the epoch has no step left, which is also true where it had none. `most` never changes the numbers. A bad row or
 * weights that are no longer finite are CMKD_ERR_VALUE. After any failure of begin, step or end but
 * CMKD_ERR_INTERRUPTED the student can only be closed; the folder holds its last good state. (Calls in the wrong order
 * are CMKD_ERR_VALUE and change nothing.) */
CMKD_API cmkd_status cmkd_student_step(cmkd_student *student, int most, int *more, cmkd_error *err);
/* Ends an epoch whose steps are all done: tests, writes last.safetensors, best.safetensors, log.jsonl and the state.
 * `watch` and `report` may be NULL. CMKD_ERR_INTERRUPTED when watch->stop said so: the steps are saved, and the call
 * may be repeated. */
CMKD_API cmkd_status cmkd_student_end(cmkd_student *student, const cmkd_watch *watch, cmkd_epoch_report *report,
                                      cmkd_error *err);
/* Writes the state as it is after the last step, for a later resume. After a failure (see cmkd_student_step):
 * CMKD_ERR_VALUE, and nothing is written. */
CMKD_API cmkd_status cmkd_student_save(cmkd_student *student, cmkd_error *err);

/* How far a student is. */
typedef struct cmkd_student_progress {
  int64_t epochs; /* of the whole run */
  int64_t epoch;  /* finished */
  int64_t steps_per_epoch;
  int64_t step; /* finished, of the epoch under way */
  int64_t images_per_epoch;
  int64_t total_images; /* of the run so far */
  int64_t total_steps;  /* likewise */
  double loss;          /* mean over the images of the epoch under way; NaN before its first step */
  double seconds;       /* that calls on this student took, in all processes of the run */
  int resumed;          /* 1: a saved run was found */
} cmkd_student_progress;
CMKD_API void cmkd_student_get_progress(const cmkd_student *student, cmkd_student_progress *out);
/* The last epoch, and the best one so far (by val_top1, without held-out images by top1; of equals the first). Owned by
 * the student, updated by cmkd_student_end. */
CMKD_API const cmkd_score *cmkd_student_last(const cmkd_student *student);
CMKD_API const cmkd_score *cmkd_student_best(const cmkd_student *student);
/* The folder of the run: last.safetensors, best.safetensors (cmkd/weights.h reads them), log.jsonl, config.json. Owned
 * by the student. */
CMKD_API const char *cmkd_student_folder(const cmkd_student *student);

#ifdef __cplusplus
}
#endif
#endif
