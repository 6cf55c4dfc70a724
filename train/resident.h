/* A cache's logits in the memory of the device, view by view as epochs need them: a step then names rows instead of
 * carrying them. Shared by all students of a session. */
#ifndef CMKD_TRAIN_RESIDENT_H
#define CMKD_TRAIN_RESIDENT_H
#include "cmkd/cache.h"
#include "kernels/backend.h"

typedef struct cmkd_resident cmkd_resident;

/* *out is NULL where the backend keeps no rows, or where they do not fit: steps then carry their logits. Borrows all
 * three. */
cmkd_status cmkd_resident_open(const cmkd_backend_table *table, cmkd_backend *backend, cmkd_cache *cache,
                               cmkd_resident **out, cmkd_error *err);
void cmkd_resident_close(cmkd_resident *resident); /* NULL does nothing */
/* Loads a view unless it is there. */
cmkd_status cmkd_resident_load(cmkd_resident *resident, uint32_t view, cmkd_error *err);
/* The rows for a step's target; row `view * samples + position`. */
const cmkd_be_rows *cmkd_resident_rows(const cmkd_resident *resident);
#endif
