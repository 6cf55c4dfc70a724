/* Selected convolution algorithms, as a run's state and the file hold them: any bytes give names or one error, and any
 * name in them an algorithm. */
#include "tests/conv_double.h"
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const made_plan plan[] = {{"cudnn:eng1{k2=1}", CMKD_CONV_FORWARD, 1, GOOD, 64},
                                   {"cudnn:eng2{}", CMKD_CONV_FORWARD, 1, FAILING, 0}};
  static cmkd_cudnn cudnn = {91900, 2, 1, plan}; /* makes plans by their name alone, so nothing is timed */
  const cmkd_conv_request request = {.shape = {.n = 1,
                                               .h = 1,
                                               .w = 1,
                                               .c = 8,
                                               .oh = 1,
                                               .ow = 1,
                                               .k = 8,
                                               .kh = 1,
                                               .kw = 1,
                                               .stride = 1,
                                               .groups = 1,
                                               .y_stride = 8},
                                     .pass = CMKD_CONV_FORWARD_FUSED};
  cmkd_conv_selector *selector;
  cmkd_conv_algorithm *algorithm;
  int used;
  char *text = malloc(size + 1), *again;
  if (!text) return 0;
  if (size) memcpy(text, data, size);
  text[size] = 0;
  if (cmkd_conv_selector_open(&cudnn, "GPU", NULL, on_stream, &selector, NULL) == CMKD_OK) {
    if (cmkd_conv_selector_load(selector, text, &used, NULL) == CMKD_OK &&
        cmkd_conv_select(selector, &request, &algorithm, NULL) == CMKD_OK)
      cmkd_conv_algorithm_free(algorithm);
    if (cmkd_conv_selector_save(selector, &again, NULL) == CMKD_OK) {
      if (cmkd_conv_selector_load(selector, again, &used, NULL) != CMKD_OK) abort(); /* what is written is read */
      free(again);
    }
    cmkd_conv_selector_close(selector);
  }
  if (made.live || plans_live) abort();
  free(text);
  return 0;
}
