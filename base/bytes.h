/* Numbers of 1 to 8 bytes as files hold them, whatever the alignment and this machine's byte order. */
#ifndef CMKD_BASE_BYTES_H
#define CMKD_BASE_BYTES_H
#include <stdint.h>

static inline uint64_t cmkd_load_little(const uint8_t *bytes, int count) {
  uint64_t number = 0;
  for (int i = 0; i < count; i++)
    number |= (uint64_t)bytes[i] << 8 * i;
  return number;
}

static inline uint64_t cmkd_load_big(const uint8_t *bytes, int count) {
  uint64_t number = 0;
  for (int i = 0; i < count; i++)
    number = number << 8 | bytes[i];
  return number;
}

static inline void cmkd_store_little(uint8_t *bytes, int count, uint64_t number) {
  for (int i = 0; i < count; i++)
    bytes[i] = (uint8_t)(number >> 8 * i);
}
#endif
