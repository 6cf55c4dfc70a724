/* Data sets in memory: uint8 images, labels and a fingerprint; and the pixels that views replay. A data set is named by
 * a SPEC: NAME or NAME:DIR ("fashion-mnist", "mnist:DIR", "cifar10:DIR", "cifar100:DIR"; case, '-' and '_' in NAME do
 * not count). docs/examples/dataset.c is a whole program.
 *
 * Threads: an open data set is never changed and may be used by any number of threads. Files are checked as hostile
 * input: exact sizes, labels in range. */
#ifndef CMKD_DATASET_H
#define CMKD_DATASET_H
#include <stdint.h>
#include "cmkd/status.h"
#include "cmkd/views.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Everything belongs to the data set and lives until cmkd_dataset_close. */
typedef struct cmkd_dataset {
  char name[32]; /* canonical: "cifar100" */
  char split[8]; /* "train" or "test" */
  char *path;    /* the folder it was read from */
  uint32_t n;    /* images of the split */
  int height, width, channels, classes;
  uint8_t *pixels;                /* (n, height, width, channels) */
  int32_t *labels;                /* (n), each in [0, classes) */
  float mean[3], std[3];          /* (channels) the usual normalisation, x = (pixel / 255 - mean) / std */
  const char *const *class_names; /* (classes) or NULL */
  char fingerprint[65];           /* 64 hex digits: SHA-256 over "cmkd-dataset-1", then n, height, width and channels as
                                     uint32, the pixels and the labels as int32, little endian, of the whole split */
} cmkd_dataset;

/* Where data sets are looked for. Zeros are the defaults. */
typedef struct cmkd_dataset_options {
  const char *search; /* folder that may hold NAME, before ./data and /usr/share/datasets; NULL: those alone */
  const char *home;   /* what '~' means in a DIR; NULL: the user's home folder as the system knows it */
} cmkd_dataset_options;

/* Reads a whole split, "train" or "test". A SPEC without a folder is searched for. `options` may be NULL. Errors:
 * CMKD_ERR_USAGE (no such name or split; the nearest is suggested), CMKD_ERR_IO (nothing there; the message lists where
 * it looked), CMKD_ERR_FORMAT (damaged files), CMKD_ERR_MEMORY. */
CMKD_API cmkd_status cmkd_dataset_open(const char *spec, const char *split, const cmkd_dataset_options *options,
                                       cmkd_dataset **out, cmkd_error *err);
/* NULL does nothing. */
CMKD_API void cmkd_dataset_close(cmkd_dataset *data);
/* The pixels that views replay: out[i] is image rows[i] cropped and mirrored as seeds[i] says under `policy`
 * (cmkd/views.h), the bytes that teachers and students see before normalisation. rows (count), seeds (count) or NULL:
 * every image as it is; out (count, height, width, channels). A row outside the split is CMKD_ERR_VALUE. Uses OpenMP's
 * threads for many rows. */
CMKD_API cmkd_status cmkd_dataset_replay(const cmkd_dataset *data, cmkd_policy policy, const uint32_t *rows,
                                         const uint64_t *seeds, uint32_t count, uint8_t *out, cmkd_error *err);
/* Names of all known data sets, NULL-terminated, static storage. */
CMKD_API const char *const *cmkd_dataset_names(void);
/* The canonical name in a SPEC: "CIFAR-100:/data" gives "cifar100". CMKD_ERR_USAGE where there is no such data set. */
CMKD_API cmkd_status cmkd_dataset_name(const char *spec, char name[32], cmkd_error *err);
/* The usual augmentation of its training images: crop and flip, but digits are never mirrored. Errors likewise. */
CMKD_API cmkd_status cmkd_dataset_policy(const char *spec, cmkd_policy *out, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
