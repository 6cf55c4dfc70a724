/* Messages of protocol buffers, written into a growing buffer: the wire types that ONNX needs. Not here: reading.
 * https://protobuf.dev/programming-guides/encoding */
#ifndef CMKD_NETS_PROTOBUF_H
#define CMKD_NETS_PROTOBUF_H
#include <stddef.h>
#include <stdint.h>

#define CMKD_PROTOBUF_MAX 0x7FFFFFFFu /* bytes; what readers take */

/* Starts as {0}. A failure (no memory, too large) is kept: later calls do nothing. Free `data`. */
typedef struct cmkd_protobuf {
  uint8_t *data;
  size_t size, capacity;
  int failed;
} cmkd_protobuf;

void cmkd_protobuf_bytes(cmkd_protobuf *b, const void *data, size_t size); /* as they are, no field */
void cmkd_protobuf_int(cmkd_protobuf *b, int field, int64_t value);
void cmkd_protobuf_float(cmkd_protobuf *b, int field, float value);
void cmkd_protobuf_text(cmkd_protobuf *b, int field, const char *text);
/* The beginning of a field of `size` bytes, which cmkd_protobuf_bytes then appends. */
void cmkd_protobuf_head(cmkd_protobuf *b, int field, size_t size);
/* Appends a finished message and empties it for the next one; its failure becomes the parent's. */
void cmkd_protobuf_message(cmkd_protobuf *b, int field, cmkd_protobuf *message);
#endif
