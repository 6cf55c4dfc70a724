/* Names of the files that belong to a cache, from the name that users give: "teacher.h5". A name without ".h5" is taken
 * as it is. All results are fresh memory that the caller frees, NULL when out of memory. */
#ifndef CMKD_FORMATS_CACHE_PATHS_H
#define CMKD_FORMATS_CACHE_PATHS_H

/* Folder of the shards: "teacher.h5" -> "teacher.shards". */
char *cmkd_cache_folder(const char *path);
/* Cache of the test split, made and found beside it: "teacher.h5" -> "teacher.test.h5". */
char *cmkd_cache_companion(const char *path);
#endif
