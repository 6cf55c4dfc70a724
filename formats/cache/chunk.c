/* Chunk coding over zstd. The stock HDF5 filter trusts its input; this one does not. */
#include "formats/cache/chunk.h"
#include <stdlib.h>
#include <string.h>
#define ZSTD_STATIC_LINKING_ONLY /* ZSTD_d_forceIgnoreChecksum */
#include <zstd.h>
#include "base/bytes.h"
#include "formats/cache/hash.h"
#include "formats/cache/codec.h"

struct cmkd_chunk_coder {
  ZSTD_CCtx *in;
  ZSTD_DCtx *out;
  int own_sum; /* the frame's checksum is checked here, not in zstd */
};

cmkd_chunk_coder *cmkd_chunk_coder_create(void) {
  return calloc(1, sizeof(cmkd_chunk_coder)); /* the contexts come with their first use */
}

void cmkd_chunk_coder_free(cmkd_chunk_coder *coder) {
  if (!coder) return;
  ZSTD_freeCCtx(coder->in);
  ZSTD_freeDCtx(coder->out);
  free(coder);
}

size_t cmkd_chunk_bound(size_t raw) { return ZSTD_compressBound(raw) + 4; }

void cmkd_byte_shuffle(const uint8_t *in, uint8_t *out, size_t count, int item) {
  const cmkd_codec_kernels *kernels = cmkd_codec_kernels_get();
  if (item == 2 && kernels->shuffle2) {
    kernels->shuffle2(in, out, count);
    return;
  }
  for (int p = 0; p < item; p++)
    for (size_t e = 0; e < count; e++)
      out[(size_t)p * count + e] = in[e * (size_t)item + (size_t)p];
}

/* One frame, but a new zstd block at each byte plane: the low bytes of floats are noise and then stay stored as they
 * are, which a reader only copies, and the high bytes get statistics of their own: 5% less than one run over both. */
static size_t compress_planes(ZSTD_CCtx *context, const uint8_t *planes, size_t elements, int item, uint8_t *out) {
  size_t raw = elements * (size_t)item;
  ZSTD_outBuffer target = {out, ZSTD_compressBound(raw), 0};
  if (ZSTD_isError(ZSTD_CCtx_reset(context, ZSTD_reset_session_only)) ||
      ZSTD_isError(ZSTD_CCtx_setPledgedSrcSize(context, raw)))
    return 0;
  for (int p = 0; p < item; p++) {
    ZSTD_inBuffer source = {planes + (size_t)p * elements, elements, 0};
    size_t left;
    do
      left = ZSTD_compressStream2(context, &target, &source, p + 1 < item ? ZSTD_e_flush : ZSTD_e_end);
    while (!ZSTD_isError(left) && left && target.pos < target.size);
    if (left) return 0;
  }
  return target.pos;
}

size_t cmkd_chunk_encode(cmkd_chunk_coder *coder, const uint8_t *items, size_t elements, int item, uint8_t *scratch,
                         uint8_t *out) {
  if (!coder->in) {
    coder->in = ZSTD_createCCtx();
    if (!coder->in) return 0;
    ZSTD_CCtx_setParameter(coder->in, ZSTD_c_compressionLevel, CMKD_CHUNK_LEVEL);
    /* short matches in noise cost a reader more than they save */
    ZSTD_CCtx_setParameter(coder->in, ZSTD_c_minMatch, 7);
    ZSTD_CCtx_setParameter(coder->in, ZSTD_c_checksumFlag, 1);
  }
  if (item > 1) cmkd_byte_shuffle(items, scratch, elements, item);
  size_t size = compress_planes(coder->in, item > 1 ? scratch : items, elements, item, out);
  if (!size) return 0;
  cmkd_store_little(out + size, 4, cmkd_fletcher32(out, size));
  return size + 4;
}

cmkd_status cmkd_chunk_decode(cmkd_chunk_coder *coder, const uint8_t *stored, size_t size, uint8_t *out, size_t raw,
                              const char *what, cmkd_error *err) {
  if (!coder->out) {
    coder->out = ZSTD_createDCtx();
    if (!coder->out) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory to decompress %s", what);
    coder->own_sum =
        cmkd_xxh64_in_vectors() &&
        !ZSTD_isError(ZSTD_DCtx_setParameter(coder->out, ZSTD_d_forceIgnoreChecksum, ZSTD_d_ignoreChecksum));
  }
  size_t frame = size < 5 ? 0 : size - 4;
  /* the fifth byte's bit 2: a checksum follows; bits 0-1: a dictionary is needed */
  int sound = frame > 5 && (stored[4] & 7) == 4 && ZSTD_getFrameContentSize(stored, frame) == raw &&
              ZSTD_findFrameCompressedSize(stored, frame) == frame;
  if (sound) {
    size_t got = ZSTD_decompressDCtx(coder->out, out, raw, stored, frame);
    sound = !ZSTD_isError(got) && got == raw;
    if (sound && coder->own_sum) sound = cmkd_load_little(stored + frame - 4, 4) == (uint32_t)cmkd_xxh64(out, raw);
  }
  if (!sound)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s is corrupt; delete that file and run the same build again (cmkd-cache verify finds all such)",
                     what);
  return CMKD_OK;
}
