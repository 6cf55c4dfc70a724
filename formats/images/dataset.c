/* The registry of data sets: names, shapes, where they lie, and the fingerprint that ties a cache to its pixels.
 * A new data set is one line in `registry`, and a reader (formats/images/readers.h) if its files are of a new kind.
 * Will not do: download. Remedies name the package or archive instead. */
#include "cmkd/dataset.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "formats/images/readers.h"
#include <ctype.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const digits[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
static const char *const fashion[] = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                                      "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
static const char *const cifar10[] = {"airplane", "automobile", "bird",  "cat",  "deer",
                                      "dog",      "frog",       "horse", "ship", "truck"};
static const char *const cifar100[] = {
    "apple",      "aquarium_fish", "baby",         "bear",       "beaver",      "bed",         "bee",
    "beetle",     "bicycle",       "bottle",       "bowl",       "boy",         "bridge",      "bus",
    "butterfly",  "camel",         "can",          "castle",     "caterpillar", "cattle",      "chair",
    "chimpanzee", "clock",         "cloud",        "cockroach",  "couch",       "crab",        "crocodile",
    "cup",        "dinosaur",      "dolphin",      "elephant",   "flatfish",    "forest",      "fox",
    "girl",       "hamster",       "house",        "kangaroo",   "keyboard",    "lamp",        "lawn_mower",
    "leopard",    "lion",          "lizard",       "lobster",    "man",         "maple_tree",  "motorcycle",
    "mountain",   "mouse",         "mushroom",     "oak_tree",   "orange",      "orchid",      "otter",
    "palm_tree",  "pear",          "pickup_truck", "pine_tree",  "plain",       "plate",       "poppy",
    "porcupine",  "possum",        "rabbit",       "raccoon",    "ray",         "road",        "rocket",
    "rose",       "sea",           "seal",         "shark",      "shrew",       "skunk",       "skyscraper",
    "snail",      "snake",         "spider",       "squirrel",   "streetcar",   "sunflower",   "sweet_pepper",
    "table",      "tank",          "telephone",    "television", "tiger",       "tractor",     "train",
    "trout",      "tulip",         "turtle",       "wardrobe",   "whale",       "willow_tree", "wolf",
    "woman",      "worm"};

typedef struct entry {
  const char *name;
  const cmkd_reader *reader;
  int height, width, channels, classes;
  float mean[3], std[3];
  cmkd_policy policy;
  const char *const *class_names;
  const char *folders[4];    /* names it goes by below the folder to search, ./data and /usr/share/datasets */
  const char *subfolders[4]; /* where unpackers put the files below a folder the user names */
  const char *remedy;
} entry;

static const entry registry[] = {
    {"fashion-mnist",
     &cmkd_reader_idx,
     28,
     28,
     1,
     10,
     {.2860f},
     {.3530f},
     CMKD_AUGMENT_CROP_FLIP,
     fashion,
     {"fashion-mnist", "FashionMNIST"},
     {"", "raw", "FashionMNIST/raw"},
     "or apt install dataset-fashion-mnist"},
    {"mnist",
     &cmkd_reader_idx,
     28,
     28,
     1,
     10,
     {.1307f},
     {.3081f},
     CMKD_AUGMENT_CROP,
     digits,
     {"mnist", "MNIST"},
     {"", "raw", "MNIST/raw"},
     "with its four IDX files"},
    {"cifar10",
     &cmkd_reader_cifar10,
     32,
     32,
     3,
     10,
     {.4914f, .4822f, .4465f},
     {.2023f, .1994f, .2010f},
     CMKD_AUGMENT_CROP_FLIP,
     cifar10,
     {"cifar10", "cifar-10", "cifar-10-batches-bin"},
     {"", "cifar-10-batches-bin"},
     "with the unpacked cifar-10-binary.tar.gz"},
    {"cifar100",
     &cmkd_reader_cifar100,
     32,
     32,
     3,
     100,
     {.5071f, .4867f, .4408f},
     {.2675f, .2565f, .2761f},
     CMKD_AUGMENT_CROP_FLIP,
     cifar100,
     {"cifar100", "cifar-100", "cifar-100-binary"},
     {"", "cifar-100-binary"},
     "with the unpacked cifar-100-binary.tar.gz"},
};
#define ENTRIES (sizeof registry / sizeof *registry)

const char *const *cmkd_dataset_names(void) {
  static const char *const names[] = {"fashion-mnist", "mnist", "cifar10", "cifar100", NULL};
  _Static_assert(sizeof names / sizeof *names == ENTRIES + 1, "names of all entries");
  return names;
}

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

static cmkd_status find_entry(const char *spec, const entry **out, cmkd_error *err) {
  size_t length = strcspn(spec, ":");
  for (size_t i = 0; i < ENTRIES; i++)
    if (same_name(spec, length, registry[i].name)) {
      *out = &registry[i];
      return CMKD_OK;
    }
  char word[64];
  snprintf(word, sizeof word, "%.*s", (int)(length < 63 ? length : 63), spec);
  const char *near = cmkd_nearest(word, cmkd_dataset_names());
  return cmkd_fail(err, CMKD_ERR_USAGE,
                   "no data set is called '%s'%s%s%s; --data takes NAME or NAME:DIR, NAME one of fashion-mnist, mnist, "
                   "cifar10, cifar100",
                   word, near ? "; did you mean '" : "", near ? near : "", near ? "'" : "");
}

cmkd_status cmkd_dataset_name(const char *spec, char name[32], cmkd_error *err) {
  const entry *e;
  CMKD_TRY(find_entry(spec, &e, err));
  snprintf(name, 32, "%s", e->name);
  return CMKD_OK;
}

/* The folder of a spec: '~' and '~/' mean the home folder (a shell leaves them alone behind "NAME:"), slashes at the
 * end are dropped. */
static char *expand(const char *dir, const char *home) {
  char *out;
  if (dir[0] == '~' && (dir[1] == '/' || !dir[1])) {
    char buffer[4096];
    struct passwd pw, *found = NULL;
    if (!home && getpwuid_r(getuid(), &pw, buffer, sizeof buffer, &found) == 0 && found) home = found->pw_dir;
    out = cmkd_format("%s%s", home ? home : "", dir + 1);
  } else
    out = cmkd_format("%s", dir);
  for (size_t n = out ? strlen(out) : 0; n > 1 && out[n - 1] == '/'; n--)
    out[n - 1] = 0;
  return out;
}

/* base, or a subfolder of it, where the split's files are; NULL when there are none. */
cmkd_status cmkd_dataset_policy(const char *spec, cmkd_policy *out, cmkd_error *err) {
  const entry *e;
  CMKD_TRY(find_entry(spec, &e, err));
  *out = e->policy;
  return CMKD_OK;
}

static char *look_in(const entry *e, const char *base, int test) {
  for (int i = 0; i < 4 && e->subfolders[i]; i++) {
    char *dir = e->subfolders[i][0] ? cmkd_path_join(base, e->subfolders[i]) : cmkd_format("%s", base);
    if (dir && e->reader->holds(dir, test)) return dir;
    free(dir);
  }
  return NULL;
}

static cmkd_status locate_given(const entry *e, const char *given, const char *home, int test, char **out,
                                cmkd_error *err) {
  struct stat st;
  char *base = expand(given, home);
  cmkd_status status = CMKD_OK;
  if (!base) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (!base[0])
    status = cmkd_fail(err, CMKD_ERR_USAGE,
                       "--data %s: no folder behind the colon; give %s:DIR, or %s alone to search the usual places",
                       e->name, e->name, e->name);
  else if (stat(base, &st) != 0)
    status =
        cmkd_fail(err, CMKD_ERR_IO, "%s: no such folder; %s needs one that holds %s", base, e->name, e->reader->files);
  else if (!S_ISDIR(st.st_mode))
    status = cmkd_fail(err, CMKD_ERR_IO, "%s: not a folder; unpack it and give the folder that holds %s", base,
                       e->reader->files);
  else if (!(*out = look_in(e, base, test)))
    status = cmkd_fail(err, CMKD_ERR_IO, "%s: found no %s split of %s there; the folder should hold %s", base,
                       test ? "test" : "train", e->name, e->reader->files);
  free(base);
  return status;
}

static cmkd_status locate_usual(const entry *e, const cmkd_dataset_options *options, int test, char **out,
                                cmkd_error *err) {
  const char *roots[] = {options->search, "data", "/usr/share/datasets"};
  char looked[640] = "";
  size_t at = 0;
  for (int r = 0; r < 3; r++)
    for (int f = 0; f < 4 && e->folders[f]; f++) {
      if (!roots[r] || !roots[r][0]) continue;
      char *root = expand(roots[r], options->home), *base = root ? cmkd_path_join(root, e->folders[f]) : NULL;
      free(root);
      if (!base) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
      *out = look_in(e, base, test);
      if (at < sizeof looked) at += (size_t)snprintf(looked + at, sizeof looked - at, "%s%s", at ? ", " : "", base);
      free(base);
      if (*out) return CMKD_OK;
    }
  return cmkd_fail(err, CMKD_ERR_IO, "%s: found nothing in %s; give --data %s:DIR %s", e->name, looked, e->name,
                   e->remedy);
}

static void little_endian(uint32_t value, uint8_t out[4]) {
  for (int i = 0; i < 4; i++)
    out[i] = (uint8_t)(value >> 8 * i);
}

static cmkd_status fingerprint(cmkd_dataset *data, cmkd_error *err) {
  const uint32_t sizes[] = {data->n, (uint32_t)data->height, (uint32_t)data->width, (uint32_t)data->channels};
  uint8_t word[4], *labels = malloc((size_t)data->n * 4);
  cmkd_hasher *hasher = cmkd_hasher_start();
  if (hasher && labels) {
    cmkd_hasher_update(hasher, "cmkd-dataset-1", 14);
    for (int i = 0; i < 4; i++) {
      little_endian(sizes[i], word);
      cmkd_hasher_update(hasher, word, 4);
    }
    cmkd_hasher_update(hasher, data->pixels,
                       (size_t)data->n * (size_t)data->height * (size_t)data->width * (size_t)data->channels);
    for (uint32_t i = 0; i < data->n; i++)
      little_endian((uint32_t)data->labels[i], labels + 4 * (size_t)i);
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
  const entry *e;
  if (!options) options = &defaults;
  *out = NULL;
  CMKD_TRY(find_entry(spec, &e, err));
  int test = !strcmp(split, "test");
  if (!test && strcmp(split, "train"))
    return cmkd_fail(err, CMKD_ERR_USAGE, "no split is called '%.60s'; there are train and test", split);
  const char *colon = strchr(spec, ':');
  cmkd_dataset *data = calloc(1, sizeof *data);
  if (!data) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  snprintf(data->name, sizeof data->name, "%s", e->name);
  snprintf(data->split, sizeof data->split, "%s", split);
  data->height = e->height;
  data->width = e->width;
  data->channels = e->channels;
  data->classes = e->classes;
  memcpy(data->mean, e->mean, sizeof data->mean);
  memcpy(data->std, e->std, sizeof data->std);
  data->class_names = e->class_names;
  cmkd_status status = colon ? locate_given(e, colon + 1, options->home, test, &data->path, err)
                             : locate_usual(e, options, test, &data->path, err);
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
