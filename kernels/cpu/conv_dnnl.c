#include "kernels/cpu/conv_dnnl.h"
#include "kernels/cpu/conv.h"
int cmkd_conv_dnnl_available(void) { return 0; }
const char *cmkd_conv_dnnl_version(char buffer[32]) { buffer[0] = 0; return buffer; }
cmkd_status cmkd_conv_dnnl_create(struct cmkd_conv *conv, const struct cmkd_conv_options *options, cmkd_conv_dnnl **out, cmkd_error *err) { *out = NULL; return CMKD_OK; }
void cmkd_conv_dnnl_free(cmkd_conv_dnnl *dnnl) {}
void cmkd_conv_dnnl_pack(const struct cmkd_conv *conv, const float *plain, float *forward, float *backward) {}
void cmkd_conv_dnnl_unpack_grad(const struct cmkd_conv *conv, const float *const *packed, int lanes, int first, int count, float *plain) {}
void cmkd_conv_dnnl_forward(const struct cmkd_conv *conv, int thread, int n, const float *src, const float *weights, const cmkd_epilogue *epilogue, float *dst) {}
void cmkd_conv_dnnl_backward_data(const struct cmkd_conv *conv, int thread, int n, const float *ddst, const float *weights, int accumulate, float *dsrc) {}
void cmkd_conv_dnnl_backward_weights(const struct cmkd_conv *conv, int thread, int n, const float *src, const float *ddst, float *grad) {}
