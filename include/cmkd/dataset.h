/* Data sets as resident uint8 images with labels and a fingerprint. A data set is named by a SPEC: `NAME` or `NAME:DIR`
 * (`fashion-mnist`, `mnist:DIR`, `cifar10:DIR`, `cifar100:DIR`). */
#ifndef CMKD_DATASET_H
#define CMKD_DATASET_H
#include <stdint.h>
#include "cmkd/status.h"
#include "cmkd/views.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmkd_dataset {
  char name[32]; /* canonical: "cifar100" */
  char split[8]; /* "train" or "test" */
  char *path;    /* the folder it was read from */
  uint32_t n;    /* samples in the split */
  int height, width, channels, classes;
  uint8_t *pixels;                /* (n, height, width, channels); NULL once a data set that is not resident exists */
  int32_t *labels;                /* (n), each in [0, classes) */
  float mean[3], std[3];          /* the usual normalisation of pixels / 255; `channels` of them */
  const char *const *class_names; /* (classes) or NULL; static */
  char fingerprint[65]; /* SHA-256 over "cmkd-dataset-1", n, height, width, channels (uint32 LE), the pixels as above
                           and the labels as int32 LE, of the whole split */
} cmkd_dataset;

/* Where data sets are looked for; all zero: the defaults. */
typedef struct cmkd_dataset_options {
  const char
      *search;      /* a folder that may hold NAME, searched before ./data and /usr/share/datasets; NULL: those alone */
  const char *home; /* what '~' means in a DIR; NULL: the user's home folder as the system knows it */
} cmkd_dataset_options;

/* Reads a whole split ("train" or "test") and checks it: exact sizes, labels in range. A SPEC without a folder is
 * searched in the usual places; the error lists where it looked. `options` may be NULL. Free with cmkd_dataset_close.
 */
CMKD_API cmkd_status cmkd_dataset_open(const char *spec, const char *split, const cmkd_dataset_options *options,
                                       cmkd_dataset **out, cmkd_error *err);
CMKD_API void cmkd_dataset_close(cmkd_dataset *data);
/* The pixels that views replay: out[i] (height, width, channels) is image rows[i] moved by seeds[i] under `policy`, the
 * bytes that teachers and students see before normalisation. seeds NULL: every image as it is. rows (count), seeds
 * (count), out (count, height, width, channels). A row outside the split is CMKD_ERR_VALUE. */
CMKD_API cmkd_status cmkd_dataset_replay(const cmkd_dataset *data, cmkd_policy policy, const uint32_t *rows,
                                         const uint64_t *seeds, uint32_t count, uint8_t *out, cmkd_error *err);
/* Names of all known data sets, NULL-terminated. */
CMKD_API const char *const *cmkd_dataset_names(void);
/* The name part of a SPEC, canonical, checked against the registry; `spec` may carry a path. */
CMKD_API cmkd_status cmkd_dataset_name(const char *spec, char name[32], cmkd_error *err);
/* The usual augmentation of a SPEC's training images: crop and flip, but digits are never mirrored. */
CMKD_API cmkd_status cmkd_dataset_policy(const char *spec, cmkd_policy *out, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
