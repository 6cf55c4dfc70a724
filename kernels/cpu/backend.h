/* The table's functions that live in model.c. Internal to kernels/cpu. */
#ifndef CMKD_KERNELS_CPU_BACKEND_H
#define CMKD_KERNELS_CPU_BACKEND_H
#include "kernels/backend.h"

cmkd_status cmkd_cpu_model_create(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                                  cmkd_error *err);
void cmkd_cpu_model_free(cmkd_be_model *model);
cmkd_status cmkd_cpu_upload(cmkd_be_model *model, cmkd_param_slot slot, const float *const *params, cmkd_error *err);
cmkd_status cmkd_cpu_download(cmkd_be_model *model, cmkd_param_slot slot, float *const *params, cmkd_error *err);
cmkd_status cmkd_cpu_gradients(cmkd_be_model *model, float *const *params, cmkd_error *err);
#endif
