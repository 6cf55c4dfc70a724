/* Where a training step's time goes. With cmkd_backend_options.profile every step runs op by op between events, and
 * {"steps", "kernels_per_step", "ms": {class: milliseconds of all of them}} is written to that file when the model is
 * freed. Gaps between launches are in these times, so they add up to more than a captured step takes. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "kernels/cuda/backend.h"

enum { MARKS = 4096 };
static const char *const names[CUDA_CLASSES] = {
    "input", "conv forward", "conv backward data", "conv backward weights", "norm", "other operations",
    "loss",  "update"};

struct cuda_profile {
  char *path;
  cudaEvent_t event[MARKS];
  cuda_class class[MARKS];
  int marks, steps, nodes;
  double ms[CUDA_CLASSES];
};

cmkd_status cmkd_cuda_profile_open(cmkd_be_model *m, cmkd_error *err) {
  const char *path = m->backend->profile;
  if (!path || !m->config.train) return CMKD_OK;
  m->profile = calloc(1, sizeof *m->profile);
  if (!m->profile || !(m->profile->path = cmkd_format("%s", path)))
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int i = 0; i < MARKS; i++)
    CMKD_TRY(cmkd_cuda_status(cudaEventCreate(&m->profile->event[i]), "profile", err));
  return CMKD_OK;
}

void cmkd_cuda_profile_mark(cmkd_be_model *m, cuda_class class) {
  cuda_profile *p = m->profile;
  if (!p || p->marks == MARKS) return;
  p->class[p->marks] = class;
  (void)cudaEventRecord(p->event[p->marks++], m->backend->stream);
}

/* After a capture; the marks in it have no times. */
void cmkd_cuda_profile_nodes(cmkd_be_model *m, int nodes) {
  m->profile->nodes = nodes;
  m->profile->marks = 0;
}

/* The interval before a mark belongs to its class; the first mark only opens the step. */
cmkd_status cmkd_cuda_profile_step(cmkd_be_model *m, cmkd_error *err) {
  cuda_profile *p = m->profile;
  CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(m->backend->stream), "a profiled step", err));
  for (int i = 1; i < p->marks; i++) {
    float ms = 0;
    CMKD_TRY(cmkd_cuda_status(cudaEventElapsedTime(&ms, p->event[i - 1], p->event[i]), "profile", err));
    if (p->steps) p->ms[p->class[i]] += (double)ms; /* the first loads kernels */
  }
  p->marks = 0;
  p->steps++;
  return CMKD_OK;
}

static void write_down(const cuda_profile *p) {
  cmkd_error err;
  json_t *ms = json_object(),
         *root = json_pack("{s:i, s:i, s:o}", "steps", p->steps - 1, "kernels_per_step", p->nodes, "ms", ms);
  for (int i = 0; i < CUDA_CLASSES; i++)
    json_object_set_new(ms, names[i], json_real(p->ms[i]));
  char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : NULL;
  if (text && cmkd_file_write(p->path, &(cmkd_piece){text, strlen(text)}, 1, &err) != CMKD_OK)
    fprintf(stderr, "CMKD_CUDA_PROFILE: %s\n", err.message);
  free(text);
  json_decref(root);
}

void cmkd_cuda_profile_close(cmkd_be_model *m) {
  cuda_profile *p = m->profile;
  if (!p) return;
  if (p->steps > 1) write_down(p);
  for (int i = 0; i < MARKS; i++)
    if (p->event[i]) (void)cudaEventDestroy(p->event[i]);
  free(p->path);
  free(p);
}
