/* The registry of data sets: names, shapes, readers, and the fingerprint that ties a cache to its pixels.
 * A new data set is a name and an entry in `registry`, and a reader (reader.h) if its files are of a new kind. Nothing
 * is downloaded: remedies name the package or archive instead. */
#include "cmkd/dataset.h"
#include "base/bytes.h"
#include "base/hash.h"
#include "base/text.h"
#include "formats/images/cifar.h"
#include "formats/images/class_names.h"
#include "formats/images/idx.h"
#include "formats/images/locate.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FASHION_MNIST, MNIST, CIFAR10, CIFAR100, ENTRIES };

static const char *const names[ENTRIES + 1] = {[FASHION_MNIST] = "fashion-mnist",
                                               [MNIST] = "mnist",
                                               [CIFAR10] = "cifar10",
                                               [CIFAR100] = "cifar100",
                                               [ENTRIES] = NULL};

typedef struct entry {
  const cmkd_image_reader *reader;
  int height, width, channels, classes;
  float mean[3], std[3]; /* of pixels / 255 in the training split, as the literature rounds them */
  cmkd_policy policy;    /* the usual augmentation */
  const char *const *class_names;
  const char *folders[4], *subfolders[4]; /* as in cmkd_places, at most 3 */
  const char *remedy;
} entry;

static const entry registry[ENTRIES] = {
    [FASHION_MNIST] = {.reader = &cmkd_image_reader_idx,
                       .height = 28,
                       .width = 28,
                       .channels = 1,
                       .classes = 10,
                       .mean = {.2860f},
                       .std = {.3530f},
                       .policy = CMKD_AUGMENT_CROP_FLIP,
                       .class_names = cmkd_names_fashion,
                       .folders = {"fashion-mnist", "FashionMNIST"},
                       .subfolders = {"", "raw", "FashionMNIST/raw"},
                       .remedy = "or apt install dataset-fashion-mnist"},
    [MNIST] = {.reader = &cmkd_image_reader_idx,
               .height = 28,
               .width = 28,
               .channels = 1,
               .classes = 10,
               .mean = {.1307f},
               .std = {.3081f},
               .policy = CMKD_AUGMENT_CROP,
               .class_names = cmkd_names_digits,
               .folders = {"mnist", "MNIST"},
               .subfolders = {"", "raw", "MNIST/raw"},
               .remedy = "with its four IDX files"},
    [CIFAR10] = {.reader = &cmkd_image_reader_cifar10,
                 .height = 32,
                 .width = 32,
                 .channels = 3,
                 .classes = 10,
                 .mean = {.4914f, .4822f, .4465f},
                 .std = {.2023f, .1994f, .2010f},
                 .policy = CMKD_AUGMENT_CROP_FLIP,
                 .class_names = cmkd_names_cifar10,
                 .folders = {"cifar10", "cifar-10", "cifar-10-batches-bin"},
                 .subfolders = {"", "cifar-10-batches-bin"},
                 .remedy = "with the unpacked cifar-10-binary.tar.gz"},
    [CIFAR100] = {.reader = &cmkd_image_reader_cifar100,
                  .height = 32,
                  .width = 32,
                  .channels = 3,
                  .classes = 100,
                  .mean = {.5071f, .4867f, .4408f},
                  .std = {.2675f, .2565f, .2761f},
                  .policy = CMKD_AUGMENT_CROP_FLIP,
                  .class_names = cmkd_names_cifar100,
                  .folders = {"cifar100", "cifar-100", "cifar-100-binary"},
                  .subfolders = {"", "cifar-100-binary"},
                  .remedy = "with the unpacked cifar-100-binary.tar.gz"},
};

const char *const *cmkd_dataset_names(void) { return names; }

/* "CIFAR-100", "fashion_mnist": case, '-' and '_' do not count. */
static int same_name(const char *a, size_t length, const char *b) {
  const char *end = a + length;
  for (;;) {
    while (a < end && (*a == '-' || *a == '_'))
      a++;
    while (*b == '-' || *b == '_')
      b++;
    if (a == end || !*b) return a == end && !*b;
    if (tolower((unsigned char)*a++) != *b++) return 0;
  }
}

/* Index of the entry that a SPEC names. */
static cmkd_status find_entry(const char *spec, size_t *index, cmkd_error *err) {
  size_t length = strcspn(spec, ":");
  for (*index = 0; *index < ENTRIES; ++*index)
    if (same_name(spec, length, names[*index])) return CMKD_OK;
  char word[64], known[256] = "";
  snprintf(word, sizeof word, "%.*s", (int)(length < 63 ? length : 63), spec);
  for (size_t i = 0; i < ENTRIES; i++) {
    const size_t used = strlen(known);
    snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", names[i]);
  }
  const char *near = cmkd_nearest(word, names);
  return cmkd_fail(err, CMKD_ERR_USAGE,
                   "no data set is called '%s'%s%s%s; it is given as NAME or NAME:DIR, NAME one of %s", word,
                   near ? "; did you mean '" : "", near ? near : "", near ? "'" : "", known);
}

cmkd_status cmkd_dataset_name(const char *spec, char name[32], cmkd_error *err) {
  size_t index;
  CMKD_TRY(find_entry(spec, &index, err));
  snprintf(name, 32, "%s", names[index]);
  return CMKD_OK;
}

cmkd_status cmkd_dataset_policy(const char *spec, cmkd_policy *out, cmkd_error *err) {
  size_t index;
  CMKD_TRY(find_entry(spec, &index, err));
  *out = registry[index].policy;
  return CMKD_OK;
}

static cmkd_status fingerprint(cmkd_dataset *data, cmkd_error *err) {
  const uint32_t sizes[] = {data->n, (uint32_t)data->height, (uint32_t)data->width, (uint32_t)data->channels};
  uint8_t word[4], *labels = malloc((size_t)data->n * 4);
  cmkd_hasher *hasher = cmkd_hasher_start();
  if (hasher && labels) {
    cmkd_hasher_update(hasher, "cmkd-dataset-1", 14);
    for (int i = 0; i < 4; i++) {
      cmkd_store_little(word, 4, sizes[i]);
      cmkd_hasher_update(hasher, word, 4);
    }
    cmkd_hasher_update(hasher, data->pixels,
                       (size_t)data->n * (size_t)data->height * (size_t)data->width * (size_t)data->channels);
    for (uint32_t i = 0; i < data->n; i++)
      cmkd_store_little(labels + 4 * (size_t)i, 4, (uint32_t)data->labels[i]);
    cmkd_hasher_update(hasher, labels, (size_t)data->n * 4);
  }
  int ok = hasher && labels;
  cmkd_hasher_finish(hasher, data->fingerprint);
  free(labels);
  return ok ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", data->path);
}

cmkd_status cmkd_dataset_open(const char *spec, const char *split, const cmkd_dataset_options *options,
                              cmkd_dataset **out, cmkd_error *err) {
  static const cmkd_dataset_options defaults;
  size_t index;
  if (!options) options = &defaults;
  *out = NULL;
  CMKD_TRY(find_entry(spec, &index, err));
  const entry *e = registry + index;
  int test = !strcmp(split, "test");
  if (!test && strcmp(split, "train"))
    return cmkd_fail(err, CMKD_ERR_USAGE, "no split is called '%.60s'; there are train and test", split);
  const char *colon = strchr(spec, ':');
  cmkd_dataset *data = calloc(1, sizeof *data);
  if (!data) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  snprintf(data->name, sizeof data->name, "%s", names[index]);
  snprintf(data->split, sizeof data->split, "%s", split);
  data->height = e->height;
  data->width = e->width;
  data->channels = e->channels;
  data->classes = e->classes;
  memcpy(data->mean, e->mean, sizeof data->mean);
  memcpy(data->std, e->std, sizeof data->std);
  data->class_names = e->class_names;
  const cmkd_places places = {names[index], e->reader, e->folders, e->subfolders, e->remedy};
  cmkd_status status = cmkd_dataset_locate(&places, options, colon ? colon + 1 : NULL, test, &data->path, err);
  if (status == CMKD_OK) status = e->reader->read(data->path, test, data, err);
  if (status == CMKD_OK) status = fingerprint(data, err);
  if (status != CMKD_OK) {
    cmkd_dataset_close(data);
    return status;
  }
  *out = data;
  return CMKD_OK;
}

void cmkd_dataset_close(cmkd_dataset *data) {
  if (!data) return;
  free(data->path);
  free(data->pixels);
  free(data->labels);
  free(data);
}
