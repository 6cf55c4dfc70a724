/* The short checksums of the cache format: XXH64 (chunk table), HDF5's fletcher32 (for h5py) and lookup3 (HDF5's own
 * metadata). */
#ifndef CMKD_FORMATS_CACHE_HASH_H
#define CMKD_FORMATS_CACHE_HASH_H
#include <stddef.h>
#include <stdint.h>
uint64_t cmkd_xxh64(const void *data, size_t size);      /* XXH64 with seed 0 */
uint32_t cmkd_fletcher32(const void *data, size_t size); /* as libhdf5's H5_checksum_fletcher32 */
/* Jenkins' lookup3 as libhdf5 uses it for metadata, initial value 0. */
uint32_t cmkd_lookup3(const void *data, size_t size);
/* Is cmkd_xxh64 faster here than the plain loop that zstd has? */
int cmkd_xxh64_in_vectors(void);
/* Its inner loop over stripes of 32 bytes, in AVX-512. */
void cmkd_xxh64_stripes_avx512(uint64_t lanes[4], const uint8_t *p, size_t stripes);
#endif
