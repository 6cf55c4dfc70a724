/* cuDNN's plans for a request: the heuristics propose engines with their knobs, and a plan is one of those made
 * executable; and running one. */
#include "kernels/cuda/conv/cudnn_internal.h"
#ifdef CONV_CUDNN
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KNOBS = 64, PROPOSALS = 64, NOTES = 32, NAME = 512 };
/* All that a plan is made from, and what its name says: the plan that is remembered is the one that was timed. */
typedef struct recipe {
  int64_t engine;
  int knobs;
  int64_t knob[KNOBS], value[KNOBS];
} recipe;

struct cmkd_cudnn_plan {
  bag b;
  conv_graph *graph;
  descriptor plan;
  int64_t workspace;
  cmkd_conv_pass pass;
  int residual;
  cmkd_dtype dtype;
  char name[NAME];
};

static int recipe_name(const recipe *r, char name[NAME]) {
  size_t used = (size_t)snprintf(name, NAME, "cudnn:eng%" PRId64 "{", r->engine);
  for (int i = 0; i < r->knobs && used < NAME; i++)
    used +=
        (size_t)snprintf(name + used, NAME - used, "%sk%" PRId64 "=%" PRId64, i ? "," : "", r->knob[i], r->value[i]);
  if (used < NAME) used += (size_t)snprintf(name + used, NAME - used, "}");
  return used < NAME;
}

static int recipe_parse(const char *name, recipe *r) {
  const char *rest = name;
  char again[NAME];
  int used = 0;
  memset(r, 0, sizeof *r);
  if (strlen(name) >= NAME || sscanf(name, "cudnn:eng%9" SCNd64 "{%n", &r->engine, &used) != 1 || !used) return 0;
  for (rest += used; *rest && *rest != '}' && r->knobs < KNOBS; rest += used) {
    used = 0;
    if (sscanf(rest, "k%9" SCNd64 "=%9" SCNd64 "%n", &r->knob[r->knobs], &r->value[r->knobs], &used) != 2 || !used)
      return 0;
    r->knobs++;
    used += rest[used] == ',';
  }
  return recipe_name(r, again) && !strcmp(again, name); /* what scanf was lenient about does not come back the same */
}

/* Left out are engines whose results change from run to run, that do arithmetic in less than float, or whose tile
 * transforms lose digits. On floats, tensor cores compute in tf32: they are allowed where tf32 is asked for; elsewhere
 * no transform is allowed that loses digits at all. */
static int allowed(const cmkd_conv_request *r, const cudnnBackendNumericalNote_t *notes, int64_t count) {
  const int f32 = r->shape.dtype == CMKD_F32;
  for (int64_t i = 0; i < count; i++)
    switch (notes[i]) {
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13: return 0;
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS: /* to halves, say */
      if (f32) return 0;
      break;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
    case CUDNN_NUMERICAL_NOTE_FFT:
      if (f32 && !r->tf32) return 0;
      break;
    default: break;
    }
  return 1;
}

void cmkd_cudnn_plan_free(cmkd_cudnn_plan *plan) {
  if (!plan) return;
  empty(&plan->b);
  cmkd_cudnn_graph_release(plan->graph);
  free(plan);
}

/* *out NULL where this cuDNN cannot make it, or where its engine is not allowed. */
static cmkd_status plan_make(conv_graph *g, const cmkd_conv_request *request, const recipe *r, size_t workspace_limit,
                             cmkd_cudnn_plan **out, cmkd_error *err) {
  cudnnBackendNumericalNote_t notes[NOTES];
  descriptor knob[KNOBS];
  *out = NULL;
  cmkd_cudnn_plan *plan = calloc(1, sizeof *plan);
  if (!plan) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  bag *b = &plan->b;
  b->lib = g->b.lib;
  plan->graph = g;
  g->users++;
  plan->pass = request->pass;
  plan->residual = request->residual;
  plan->dtype = request->shape.dtype;
  if (!recipe_name(r, plan->name)) failed(b, CUDNN_STATUS_NOT_SUPPORTED, "a name");

  descriptor engine = make(b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  set_part(b, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, g->graph);
  set_int64(b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, r->engine);
  if (!b->lib->handle) set_part(b, engine, CUDNN_ATTR_ENGINE_DEVICEPROP, b->lib->device);
  finish(b, engine, "an engine");
  int64_t count = get(b, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES, notes);
  if (b->status == CUDNN_STATUS_SUCCESS && !allowed(request, notes, count))
    failed(b, CUDNN_STATUS_NOT_SUPPORTED, "an engine");
  for (int i = 0; i < r->knobs; i++) {
    const cudnnBackendKnobType_t type = (cudnnBackendKnobType_t)r->knob[i];
    knob[i] = make(b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    set(b, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
    set_int64(b, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, r->value[i]);
    finish(b, knob[i], "a knob");
  }
  descriptor config = make(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  set_part(b, config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  if (r->knobs) set(b, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, r->knobs, knob);
  finish(b, config, "an engine's configuration");
  plan->plan = make(b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  if (b->lib->handle)
    set(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &b->lib->handle);
  else
    set_part(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, b->lib->device);
  set_part(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  finish(b, plan->plan, "a plan");
  get(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &plan->workspace);
  if (b->status != CUDNN_STATUS_SUCCESS || plan->workspace < 0 || (uint64_t)plan->workspace > workspace_limit)
    cmkd_cudnn_plan_free(plan);
  else
    *out = plan;
  return CMKD_OK;
}

/* An engine's configuration taken apart; 0 after a failure. */
static int recipe_read(const cmkd_cudnn *lib, descriptor config, recipe *r) {
  bag b = {.lib = lib};
  descriptor engine = make(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR), knob[KNOBS];
  get(&b, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
  get(&b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &r->engine);
  for (int k = 0; k < KNOBS; k++)
    knob[k] = make(&b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
  r->knobs = (int)get(&b, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, KNOBS, knob);
  for (int k = 0; k < r->knobs; k++) {
    cudnnBackendKnobType_t type = 0;
    get(&b, knob[k], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
    get(&b, knob[k], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &r->value[k]);
    r->knob[k] = type;
  }
  empty(&b);
  return b.status == CUDNN_STATUS_SUCCESS;
}

/* What one mode of the heuristics proposes, best first; how many. None is no failure: many requests have none. */
static int propose(const conv_graph *g, cudnnBackendHeurMode_t mode, recipe *proposal) {
  bag b = {.lib = g->b.lib};
  descriptor config[PROPOSALS], heuristics = make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  int found = 0;
  set_part(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, g->graph);
  set(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (!b.lib->handle) set_part(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, b.lib->device);
  finish(&b, heuristics, "heuristics");
  int64_t count = get(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, NULL);
  if (count > PROPOSALS) count = PROPOSALS;
  for (int64_t i = 0; i < count; i++)
    config[i] = make(&b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  if (count) count = get(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, config);
  for (int64_t i = 0; i < count; i++)
    found += recipe_read(b.lib, config[i], &proposal[found]);
  empty(&b);
  return found;
}

cmkd_status cmkd_cudnn_plans(cmkd_cudnn *lib, const cmkd_conv_request *request, size_t workspace_limit, int capacity,
                             cmkd_cudnn_plan **plans, int *count, cmkd_error *err) {
  static const cudnnBackendHeurMode_t modes[2] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
  cmkd_status status;
  conv_graph *g;
  *count = 0;
  CMKD_TRY(cmkd_cudnn_graph_make(lib, request, &g, err));
  if (!g) return CMKD_OK;
  recipe *proposal = malloc(PROPOSALS * sizeof *proposal);
  status = proposal ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int mode = 0; mode < 2 && status == CMKD_OK && *count < capacity; mode++) {
    const int proposals = propose(g, modes[mode], proposal);
    for (int i = 0; i < proposals && status == CMKD_OK && *count < capacity; i++) {
      cmkd_cudnn_plan *plan;
      status = plan_make(g, request, &proposal[i], workspace_limit, &plan, err);
      for (int j = 0; plan && j < *count; j++)
        if (!strcmp(plans[j]->name, plan->name)) {
          cmkd_cudnn_plan_free(plan);
          plan = NULL;
        }
      if (plan) plans[(*count)++] = plan;
    }
  }
  while (status != CMKD_OK && *count)
    cmkd_cudnn_plan_free(plans[--*count]);
  free(proposal);
  cmkd_cudnn_graph_release(g);
  return status;
}

cmkd_status cmkd_cudnn_plan_named(cmkd_cudnn *lib, const cmkd_conv_request *request, const char *name,
                                  cmkd_cudnn_plan **out, cmkd_error *err) {
  recipe r;
  conv_graph *g;
  *out = NULL;
  if (!recipe_parse(name, &r)) return CMKD_OK;
  CMKD_TRY(cmkd_cudnn_graph_make(lib, request, &g, err));
  if (!g) return CMKD_OK;
  cmkd_status status = plan_make(g, request, &r, SIZE_MAX, out, err);
  cmkd_cudnn_graph_release(g);
  return status;
}

const char *cmkd_cudnn_plan_name(const cmkd_cudnn_plan *plan) { return plan->name; }
size_t cmkd_cudnn_plan_workspace(const cmkd_cudnn_plan *plan) { return (size_t)plan->workspace; }
/* No engine worth having writes floats from 16 bits. */
cmkd_dtype cmkd_cudnn_plan_dw_dtype(const cmkd_cudnn_plan *plan) { return plan->dtype; }

cmkd_status cmkd_cudnn_run(cmkd_cudnn *lib, const cmkd_cudnn_plan *plan, const void *a, const void *b, void *c,
                           const cmkd_cuda_epilogue *epilogue, void *workspace, cmkd_error *err) {
  const int64_t uid[5] = {UID_A, UID_B, UID_C, UID_BIAS, UID_RESIDUAL};
  const void *pointer[5] = {a, b, c, epilogue ? epilogue->bias : NULL, epilogue ? epilogue->residual : NULL};
  const int fused = plan->pass == CMKD_CONV_FORWARD_FUSED, count = 3 + fused + (fused && plan->residual);
  if (!lib->handle) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cuDNN: plans made without their device do not run");
  bag pack = {.lib = lib};
  descriptor d = make(&pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  set(&pack, d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, uid);
  set(&pack, d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointer);
  set(&pack, d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  finish(&pack, d, "the tensors' addresses");
  if (pack.status == CUDNN_STATUS_SUCCESS)
    failed(&pack, lib->cudnnBackendExecute(lib->handle, plan->plan, d), plan->name);
  cmkd_status status = pack.status == CUDNN_STATUS_SUCCESS ? CMKD_OK : cudnn_fail(lib, err, pack.status, pack.what);
  empty(&pack);
  return status;
}
#endif
