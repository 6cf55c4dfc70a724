/* What a resumed run needs beside its parameters, as JSON: {"plans": the algorithm of each convolution, "scale": fp16's
 * loss scale, "good": steps since it last changed}. */
#include <jansson.h>
#include <stdlib.h>
#include "kernels/cuda/backend.h"

cmkd_status cmkd_cuda_save(cmkd_be_model *m, char **text, cmkd_error *err) {
  cmkd_cuda_state state;
  char *plans = NULL;
  *text = NULL;
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(cmkd_cuda_get(m->backend, &state, m->state, sizeof state, "state", err));
  CMKD_TRY(cmkd_conv_selector_save(m->backend->selector, &plans, err));
  json_t *root = json_pack("{s:o?, s:f, s:i}", "plans", json_loads(plans, 0, NULL), "scale", (double)state.scale,
                           "good", state.good);
  *text = root ? json_dumps(root, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  json_decref(root);
  free(plans);
  return *text ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the device's part of the state");
}

cmkd_status cmkd_cuda_load(cmkd_be_model *m, const char *text, int *used, cmkd_error *err) {
  json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
  const double scale = json_number_value(json_object_get(root, "scale"));
  const json_int_t good = json_integer_value(json_object_get(root, "good"));
  char *plans = root ? json_dumps(json_object_get(root, "plans"), JSON_COMPACT) : NULL;
  cmkd_status status = CMKD_OK;
  *used = 0;
  if (!plans || !(scale >= 1 && scale <= (double)CMKD_CUDA_SCALE_MOST) || good < 0 || good > CMKD_CUDA_SCALE_STEPS)
    status = cmkd_fail(err, CMKD_ERR_FORMAT,
                       "the device's part of the run's state is damaged; delete the run's folder to start afresh");
  if (status == CMKD_OK) status = cmkd_conv_selector_load(m->backend->selector, plans, used, err);
  free(plans);
  json_decref(root);
  if (status != CMKD_OK || m->backend->dtype != CMKD_F16) return status;
  const float narrow = (float)scale;
  const int count = (int)good;
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(cmkd_cuda_put(m->backend, &m->state->scale, &narrow, sizeof narrow, "state", err));
  return cmkd_cuda_put(m->backend, &m->state->good, &count, sizeof count, "state", err);
}
