/* Selects the algorithm of a convolution: the one that a resumed run had, else the remembered one, else the fastest of
 * our own kernels and cuDNN's plans. Not here: making plans (cudnn_plan.c), timing (autotune.c), computing (gemm.cu,
 * depthwise.cu). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "kernels/cuda/conv/select.h"

enum {
  MAX_PLANS = 10,  /* candidates that cuDNN has ready */
  MAX_COMPILED = 3 /* candidates that are compiled at run time */
};
#define WORKSPACE_LIMIT ((size_t)256 << 20)

cmkd_status cmkd_conv_selector_open(cmkd_cudnn *cudnn, const char *device, const char *cache_path, void *stream,
                                    cmkd_conv_selector **out, cmkd_error *err) {
  const int remembers = cudnn && cache_path;
  *out = NULL;
  cmkd_conv_selector *selector = calloc(1, sizeof *selector);
  if (!selector) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  selector->cudnn = cudnn;
  selector->stream = stream;
  selector->device = cmkd_format("%s, cuDNN %d", device, cudnn ? cmkd_cudnn_version(cudnn) : 0);
  if (remembers) selector->cache_path = strdup(cache_path);
  selector->resumed = json_object();
  selector->selected = json_object();
  if (selector->device) selector->cached = cmkd_conv_cache_read(selector);
  if (!selector->device || (remembers && !selector->cache_path) || !selector->resumed || !selector->selected ||
      !selector->cached) {
    cmkd_conv_selector_close(selector);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  }
  *out = selector;
  return CMKD_OK;
}

void cmkd_conv_selector_close(cmkd_conv_selector *selector) {
  if (!selector) return;
  json_decref(selector->resumed);
  json_decref(selector->selected);
  json_decref(selector->cached);
  free(selector->device);
  free(selector->cache_path);
  free(selector);
}

/* A remembered name as an algorithm; *out NULL where it no longer works. */
static cmkd_status remembered(cmkd_conv_selector *selector, const cmkd_conv_request *request, const char *name,
                              cmkd_conv_algorithm **out, cmkd_error *err) {
  const size_t length = strlen(name), tail = strlen(CONV_SEPARATE);
  const int separate = length > tail && !strcmp(name + length - tail, CONV_SEPARATE);
  cmkd_conv_request asked = *request;
  char plain[CONV_NAME_BYTES];
  cmkd_cudnn_plan *plan = NULL;
  cmkd_conv_algorithm *pair[2] = {NULL, NULL};
  *out = NULL;
  if (!strcmp(name, CONV_OWN)) return cmkd_conv_algorithm_make(selector, request, NULL, 0, out, err);
  if (!selector->cudnn || length >= sizeof plain || (separate && request->pass != CMKD_CONV_FORWARD_FUSED))
    return CMKD_OK;
  memcpy(plain, name, length + 1);
  if (separate) {
    plain[length - tail] = 0;
    asked.pass = CMKD_CONV_FORWARD;
  }
  cmkd_status status = cmkd_cudnn_plan_named(selector->cudnn, &asked, plain, &plan, err);
  if (status == CMKD_ERR_DEVICE) status = CMKD_OK; /* cuDNN would not: as if it had none */
  if (status == CMKD_OK && plan && cmkd_cudnn_plan_workspace(plan) > WORKSPACE_LIMIT) {
    cmkd_cudnn_plan_free(plan);
    plan = NULL;
  }
  if (status != CMKD_OK || !plan) return status;
  int winner;
  status = cmkd_conv_algorithm_make(selector, request, plan, separate, &pair[1], err);
  if (status == CMKD_OK) status = cmkd_conv_algorithm_make(selector, request, NULL, 0, &pair[0], err);
  if (status == CMKD_OK) status = cmkd_conv_autotune(selector, request, pair, 2, 0, &winner, err);
  if (status == CMKD_OK && winner == 1) {
    *out = pair[1];
    pair[1] = NULL;
  }
  cmkd_conv_algorithm_free(pair[0]);
  cmkd_conv_algorithm_free(pair[1]);
  return status;
}

/* Appends cuDNN's plans for a request; none where it has none or fails. */
static cmkd_status add_plans(cmkd_conv_selector *selector, const cmkd_conv_request *request, int separate, int capacity,
                             cmkd_conv_algorithm **candidate, int *count, cmkd_error *err) {
  cmkd_cudnn_plan *plan[MAX_PLANS];
  cmkd_conv_request asked = *request;
  int plans = 0;
  if (separate) asked.pass = CMKD_CONV_FORWARD;
  cmkd_status status = cmkd_cudnn_plans(selector->cudnn, &asked, WORKSPACE_LIMIT, capacity, plan, &plans, err);
  if (status == CMKD_ERR_DEVICE) {
    status = CMKD_OK;
    plans = 0;
  }
  for (int i = 0; i < plans; i++) {
    if (status != CMKD_OK)
      cmkd_cudnn_plan_free(plan[i]);
    else if ((status = cmkd_conv_algorithm_make(selector, request, plan[i], separate, &candidate[*count], err)) ==
             CMKD_OK)
      ++*count;
  }
  return status;
}

static cmkd_status measure(cmkd_conv_selector *selector, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                           int *measured, cmkd_error *err) {
  cmkd_conv_algorithm *candidate[1 + MAX_PLANS + MAX_COMPILED];
  int count = 0, winner = 0;
  const int fused = request->pass == CMKD_CONV_FORWARD_FUSED;
  cmkd_status status = cmkd_conv_algorithm_make(selector, request, NULL, 0, &candidate[0], err);
  if (status == CMKD_OK) count = 1;
  /* engines that fuse are mostly compiled at run time, about a second each: few of those */
  if (status == CMKD_OK && selector->cudnn)
    status = add_plans(selector, request, 0, fused ? MAX_COMPILED : MAX_PLANS, candidate, &count, err);
  if (status == CMKD_OK && selector->cudnn && fused)
    status = add_plans(selector, request, 1, MAX_PLANS, candidate, &count, err);
  *measured = count > 1;
  if (status == CMKD_OK && count > 1) status = cmkd_conv_autotune(selector, request, candidate, count, 1, &winner, err);
  for (int i = 0; i < count; i++)
    if (status == CMKD_OK && i == winner)
      *out = candidate[i];
    else
      cmkd_conv_algorithm_free(candidate[i]);
  return status;
}

cmkd_status cmkd_conv_select(cmkd_conv_selector *selector, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                             cmkd_error *err) {
  json_t *const sources[3] = {selector->resumed, selector->selected, selector->cached};
  char key[CONV_KEY_BYTES];
  int measured = 0;
  *out = NULL;
  cmkd_conv_request_key(request, key);
  for (cmkd_conv_algorithm *c = selector->live; c; c = c->next)
    if (!strcmp(c->key, key)) {
      c->users++;
      *out = c;
      return CMKD_OK;
    }
  for (int i = 0; i < 3 && !*out; i++) {
    const char *name = json_string_value(json_object_get(sources[i], key));
    if (name) CMKD_TRY(remembered(selector, request, name, out, err));
  }
  if (!*out) CMKD_TRY(measure(selector, request, out, &measured, err));
  if (json_object_set_new(selector->selected, key, json_string((*out)->name)) ||
      (measured && json_object_set_new(selector->cached, key, json_string((*out)->name)))) {
    cmkd_conv_algorithm_free(*out);
    *out = NULL;
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  }
  if (measured && selector->cache_path) cmkd_conv_cache_write(selector);
  memcpy((*out)->key, key, sizeof key);
  (*out)->users = 1;
  (*out)->next = selector->live;
  selector->live = *out;
  return CMKD_OK;
}
