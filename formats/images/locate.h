/* Where the files of a data set are: in the folder that the user named, or in the usual places. */
#ifndef CMKD_FORMATS_IMAGES_LOCATE_H
#define CMKD_FORMATS_IMAGES_LOCATE_H
#include "formats/images/reader.h"

typedef struct cmkd_places {
  const char *name; /* of the data set, for messages */
  const cmkd_image_reader *reader;
  const char *const *folders;    /* NULL-terminated: names it goes by below the usual places */
  const char *const *subfolders; /* NULL-terminated: where unpackers put the files below such a folder; "": in it */
  const char *remedy;            /* for messages: behind "give the data set as NAME:DIR" */
} cmkd_places;

/* The folder that holds a split, which the caller frees. `given`: the folder of the user's SPEC, in which '~' is the
 * home folder (a shell leaves it alone behind "NAME:"); NULL: the usual places, which are options->search, ./data and
 * /usr/share/datasets. The error lists where it looked. */
cmkd_status cmkd_dataset_locate(const cmkd_places *places, const cmkd_dataset_options *options, const char *given,
                                int test, char **out, cmkd_error *err);
#endif
