/* Files of reference answers (bench/gpu/reference.c): as they are, as the content behind a good hash and frame, and as
 * the numbers of a small network's step. */
#include "bench/gpu/reference.c" /* linked into no library */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse(const uint8_t *bytes, size_t size) {
  cmkd_error err;
  json_t *about;
  uint8_t *numbers;
  size_t count;
  if (bench_reference_parse(bytes, size, "fuzz", &about, &numbers, &count, &err) != CMKD_OK) return;
  (void)bench_reference_match(about, json_object_get(about, "settings"), "fuzz", &err);
  json_decref(about);
  free(numbers);
}

static void parse_content(const uint8_t *data, size_t size) {
  const size_t bound = ZSTD_compressBound(size);
  uint8_t *file = malloc(HEAD_SIZE + bound);
  char hex[CMKD_SHA256_HEX];
  if (!file) return;
  const size_t got = ZSTD_compress(file + HEAD_SIZE, bound, data, size, 1);
  cmkd_sha256(file + HEAD_SIZE, got, hex);
  memcpy(file, MAGIC, MAGIC_SIZE);
  memcpy(file + MAGIC_SIZE, hex, CMKD_SHA256_HEX - 1);
  file[HEAD_SIZE - 1] = '\n';
  parse(file, HEAD_SIZE + got);
  free(file);
}

/* Bytes that are missing are the input's again. */
static void unpack(const uint8_t *data, size_t size) {
  static cmkd_graph *graph;
  static cmkd_params start;
  cmkd_error err;
  bench_answers answers;
  if (!graph) {
    if (cmkd_net_build("resnet8", (cmkd_net_shape){8, 8, 3, 3}, &graph, &err) != CMKD_OK) abort();
    if (cmkd_params_create(graph, &start, &err) != CMKD_OK) abort();
    cmkd_params_init(graph, 1, &start);
  }
  const bench_packing packing = {graph, &start, 0.05, 5e-4, 1, 16};
  const size_t needed = bench_packed_size(&packing);
  uint8_t *packed = malloc(needed);
  for (size_t i = 0; packed && i < needed; i++)
    packed[i] = data[i % size];
  if (packed && bench_answers_create(graph, 1, &answers, &err) == CMKD_OK) {
    (void)bench_answers_unpack(&packing, packed, &answers, &err);
    bench_answers_free(&answers);
  }
  free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return 0;
  const int kind = data[0] % 3;
  data++, size--;
  if (kind == 0) parse(data, size);
  if (kind == 1) parse_content(data, size);
  if (kind == 2) unpack(data, size);
  return 0;
}
