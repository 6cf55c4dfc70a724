/* One chunk: items -> byte shuffle -> one zstd frame (content size, checksum) -> fletcher32 behind it; and back,
 * checked. */
#ifndef CMKD_FORMATS_CACHE_CHUNK_H
#define CMKD_FORMATS_CACHE_CHUNK_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/status.h"

/* zstd's level: 3 takes twice the time for the same size, higher ones 10 to 100 times for 2% less. */
#define CMKD_CHUNK_LEVEL 1

typedef struct cmkd_chunk_coder cmkd_chunk_coder; /* zstd's memory, for one thread at a time */
cmkd_chunk_coder *cmkd_chunk_coder_create(void);  /* NULL when out of memory */
void cmkd_chunk_coder_free(cmkd_chunk_coder *coder);

/* items (count, item bytes each) -> planes, as HDF5's shuffle filter: out[p * count + e] = in[e * item + p]. */
void cmkd_byte_shuffle(const uint8_t *in, uint8_t *out, size_t count, int item);

/* Most bytes that an encoded chunk of `raw` bytes takes. */
size_t cmkd_chunk_bound(size_t raw);
/* items (elements, item bytes each) -> out, of cmkd_chunk_bound bytes. scratch: elements * item bytes, unused when item
 * is 1. Gives the stored size, 0 on failure. */
size_t cmkd_chunk_encode(cmkd_chunk_coder *coder, const uint8_t *items, size_t elements, int item, uint8_t *scratch,
                         uint8_t *out);
/* stored (size) -> out: exactly `raw` bytes, still shuffled. Refuses anything but one whole frame of that content size
 * with a good checksum. `what` names the chunk in the message. */
cmkd_status cmkd_chunk_decode(cmkd_chunk_coder *coder, const uint8_t *stored, size_t size, uint8_t *out, size_t raw,
                              const char *what, cmkd_error *err);
#endif
