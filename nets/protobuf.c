/* Messages of protocol buffers. See protobuf.h. */
#include "nets/protobuf.h"
#include <stdlib.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_LENGTH = 2, WIRE_32_BITS = 5 };

void cmkd_protobuf_bytes(cmkd_protobuf *b, const void *data, size_t size) {
  if (b->failed || size > CMKD_PROTOBUF_MAX || b->size + size > CMKD_PROTOBUF_MAX) {
    b->failed = 1;
    return;
  }
  if (b->size + size > b->capacity) {
    size_t capacity = b->capacity ? b->capacity : 256;
    while (capacity < b->size + size)
      capacity *= 2;
    uint8_t *bigger = realloc(b->data, capacity);
    if (!bigger) {
      b->failed = 1;
      return;
    }
    b->data = bigger;
    b->capacity = capacity;
  }
  if (size) memcpy(b->data + b->size, data, size);
  b->size += size;
}

/* Seven bits a byte, the lowest first; the eighth bit: more to come. */
static void put_varint(cmkd_protobuf *b, uint64_t v) {
  uint8_t byte[10];
  size_t n = 0;
  while (v > 127) {
    byte[n++] = (uint8_t)(v & 127) | 128;
    v >>= 7;
  }
  byte[n++] = (uint8_t)v;
  cmkd_protobuf_bytes(b, byte, n);
}

static void put_key(cmkd_protobuf *b, int field, int wire_type) {
  put_varint(b, (uint64_t)field << 3 | (uint64_t)wire_type);
}

void cmkd_protobuf_int(cmkd_protobuf *b, int field, int64_t value) {
  put_key(b, field, WIRE_VARINT);
  put_varint(b, (uint64_t)value);
}

void cmkd_protobuf_float(cmkd_protobuf *b, int field, float value) {
  put_key(b, field, WIRE_32_BITS);
  cmkd_protobuf_bytes(b, &value, sizeof value);
}

void cmkd_protobuf_head(cmkd_protobuf *b, int field, size_t size) {
  put_key(b, field, WIRE_LENGTH);
  put_varint(b, size);
}

void cmkd_protobuf_text(cmkd_protobuf *b, int field, const char *text) {
  cmkd_protobuf_head(b, field, strlen(text));
  cmkd_protobuf_bytes(b, text, strlen(text));
}

void cmkd_protobuf_message(cmkd_protobuf *b, int field, cmkd_protobuf *message) {
  cmkd_protobuf_head(b, field, message->size);
  cmkd_protobuf_bytes(b, message->data, message->size);
  b->failed |= message->failed;
  message->size = 0;
}
