/* Large memory of streams, kept from one to the next. */
#include <sys/mman.h>
#include "formats/cache/reader/reader.h"

#define HUGE_PAGE ((size_t)2 << 20)

cmkd_region cmkd_region_take(cmkd_cache *cache, size_t size) {
  cmkd_region found = {NULL, 0};
  if (size > SIZE_MAX / 2) return found;
  size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  pthread_mutex_lock(&cache->mutex);
  for (int i = 0; i < 2 && !found.size; i++)
    if (cache->spare[i].size >= size) {
      found = cache->spare[i];
      cache->spare[i] = (cmkd_region){NULL, 0};
    }
  pthread_mutex_unlock(&cache->mutex);
  if (found.size) return found;
  uint8_t *bytes = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) return found;
  size_t before = (HUGE_PAGE - (uintptr_t)bytes % HUGE_PAGE) % HUGE_PAGE; /* huge pages want their own alignment */
  if (before) munmap(bytes, before);
  if (HUGE_PAGE - before) munmap(bytes + before + size, HUGE_PAGE - before);
  madvise(bytes + before, size, MADV_HUGEPAGE);
  return (cmkd_region){bytes + before, size};
}

void cmkd_region_return(cmkd_cache *cache, cmkd_region region) {
  if (!region.size) return;
  pthread_mutex_lock(&cache->mutex);
  int smaller = cache->spare[0].size <= cache->spare[1].size ? 0 : 1;
  if (cache->spare[smaller].size < region.size) {
    cmkd_region other = cache->spare[smaller];
    cache->spare[smaller] = region;
    region = other;
  }
  pthread_mutex_unlock(&cache->mutex);
  if (region.size) munmap(region.bytes, region.size);
}

void cmkd_regions_free(cmkd_cache *cache) {
  for (int i = 0; i < 2; i++)
    if (cache->spare[i].size) munmap(cache->spare[i].bytes, cache->spare[i].size);
}
