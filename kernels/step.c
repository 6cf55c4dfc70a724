#include "kernels/step.h"
#include <stdlib.h>
#include <string.h>
#include "base/limits.h"

/* ---- configuration ---- */

int cmkd_target_find(const cmkd_model_config *config, const char *name) {
  if (!config->targets) return strcmp(name, "teacher") ? -1 : CMKD_TARGET_TEACHER;
  for (int i = 0; i < config->targets; i++)
    if (!strcmp(config->target[i].name, name)) return i;
  return -1;
}

static int target_width(const cmkd_model_config *config, int target) {
  return config->targets ? config->target[target].width : config->graph->classes;
}

static cmkd_status check_targets(const cmkd_model_config *c, cmkd_error *err) {
  const char *arch = c->graph->arch;
  if (c->targets < 0 || c->targets > CMKD_MAX_TARGETS)
    return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: %d targets; at most %d", arch, c->targets, CMKD_MAX_TARGETS);
  for (int i = 0; i < c->targets; i++) {
    const cmkd_target_spec *target = &c->target[i];
    if (!target->name || !*target->name || target->width < 1)
      return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: target %d has no name or no width", arch, i);
    if (cmkd_target_find(c, target->name) != i)
      return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: two targets `%s`", arch, target->name);
  }
  if (c->targets && (strcmp(c->target[CMKD_TARGET_TEACHER].name, "teacher") ||
                     c->target[CMKD_TARGET_TEACHER].width != c->graph->classes))
    return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: its first target is not `teacher` of %d classes", arch,
                     c->graph->classes);
  return CMKD_OK;
}

static cmkd_status check_objectives(const cmkd_model_config *c, cmkd_error *err) {
  const char *arch = c->graph->arch;
  if (c->objectives < 0 || c->objectives > CMKD_MAX_OUTPUTS)
    return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: %d objectives; at most %d", arch, c->objectives, CMKD_MAX_OUTPUTS);
  for (int i = 0; i < c->objectives; i++) {
    const cmkd_objective *o = &c->objective[i];
    const int output = o->output ? cmkd_graph_output_find(c->graph, o->output) : -1;
    const int target = o->target ? cmkd_target_find(c, o->target) : -1;
    if (output < 0 || target < 0)
      return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: objective %d: there is no %s `%s`", arch, i,
                       output < 0 ? "output" : "target",
                       output < 0 ? (o->output ? o->output : "") : (o->target ? o->target : ""));
    if ((size_t)target_width(c, target) != cmkd_graph_output_width(c->graph, output))
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "`%s`: output `%s` has %zu numbers, target `%s` %d", arch, o->output,
                       cmkd_graph_output_width(c->graph, output), o->target, target_width(c, target));
    if (!isfinite(o->weight))
      return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: objective %d: its weight is not finite", arch, i);
  }
  return CMKD_OK;
}

cmkd_status cmkd_model_check(const cmkd_model_config *c, cmkd_error *err) {
  CMKD_TRY(cmkd_graph_check(c->graph, err));
  if (c->batch < 1 || c->batch > CMKD_MAX_BATCH)
    return cmkd_fail(err, CMKD_ERR_VALUE, "batch %d is out of range (1 to %d)", c->batch, CMKD_MAX_BATCH);
  if (c->train && !c->loss) return cmkd_fail(err, CMKD_ERR_VALUE, "a model that trains needs a loss");
  const int channels = c->graph->tensor[0].c, most = sizeof c->mean / sizeof *c->mean;
  if (channels > most)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s`: images of %d channels; at most %d", c->graph->arch, channels,
                     most);
  for (int i = 0; i < channels; i++)
    if (!(c->std[i] > 0) || !(c->std[i] <= 3e38f) || !(c->mean[i] >= -3e38f && c->mean[i] <= 3e38f))
      return cmkd_fail(err, CMKD_ERR_VALUE, "normalisation of channel %d (mean %g, deviation %g) is not usable", i,
                       (double)c->mean[i], (double)c->std[i]);
  CMKD_TRY(check_targets(c, err));
  return check_objectives(c, err);
}

cmkd_objective_term cmkd_objective_of(const cmkd_model_config *config, int objective) {
  const cmkd_objective *o = &config->objective[objective];
  const int output = cmkd_graph_output_find(config->graph, o->output);
  return (cmkd_objective_term){.tensor = config->graph->output[output].tensor,
                               .target = cmkd_target_find(config, o->target),
                               .width = (int)cmkd_graph_output_width(config->graph, output),
                               .weight = o->weight};
}

int cmkd_gradient_roots(const cmkd_model_config *config, int roots[CMKD_MAX_OUTPUTS + 1]) {
  int count = 0;
  roots[count++] = cmkd_graph_logits(config->graph);
  for (int i = 0; i < config->objectives; i++) {
    const int tensor = cmkd_objective_of(config, i).tensor;
    int known = 0;
    for (int j = 0; j < count; j++)
      known |= roots[j] == tensor;
    if (!known) roots[count++] = tensor;
  }
  return count;
}

/* ---- a step ---- */

static int has_target(const cmkd_step *step, int target) {
  return step->target[target].values || step->target[target].resident;
}

static cmkd_status check_train_step(const cmkd_model_config *config, const cmkd_image_set *images,
                                    const cmkd_step *step, int resident, cmkd_error *err) {
  if (!config->train) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s` was made for inference", config->graph->arch);
  if (!images->labels) return cmkd_fail(err, CMKD_ERR_VALUE, "training needs images with labels");
  if (!has_target(step, CMKD_TARGET_TEACHER) && cmkd_loss_needs_teacher(config->loss))
    return cmkd_fail(err, CMKD_ERR_VALUE, "the loss `%s` needs teacher logits", cmkd_loss_text(config->loss));
  for (int i = 0; i < config->objectives; i++)
    if (!has_target(step, cmkd_target_find(config, config->objective[i].target)))
      return cmkd_fail(err, CMKD_ERR_VALUE, "a step without target `%s`, which an objective reads",
                       config->objective[i].target);
  for (int i = 0; i < CMKD_MAX_TARGETS; i++) {
    if (!step->target[i].resident) continue;
    if (!resident) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "this device keeps no rows; give them with each step");
    if (!step->target[i].index)
      return cmkd_fail(err, CMKD_ERR_VALUE, "a step names resident rows without saying which");
  }
  if (!(step->epoch >= 1)) return cmkd_fail(err, CMKD_ERR_VALUE, "epoch %g is below 1", step->epoch);
  if (!isfinite(step->lr)) return cmkd_fail(err, CMKD_ERR_VALUE, "learning rate %g is not finite", step->lr);
  if (!(step->entropy_mean >= 0) || isinf(step->entropy_mean))
    return cmkd_fail(err, CMKD_ERR_VALUE, "a mean entropy of %g", step->entropy_mean);
  return CMKD_OK;
}

cmkd_status cmkd_step_check(const cmkd_model_config *config, cmkd_list list, const cmkd_image_set *images,
                            const cmkd_step *step, int resident, cmkd_error *err) {
  const cmkd_shape in = config->graph->tensor[0];
  if (images->h != in.h || images->w != in.w || images->c != in.c)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "images are %dx%dx%d, `%s` was made for %dx%dx%d", images->h, images->w,
                     images->c, config->graph->arch, in.h, in.w, in.c);
  if (step->count < 1 || step->count > config->batch)
    return cmkd_fail(err, CMKD_ERR_VALUE, "a step of %d rows; the model takes 1 to %d", step->count, config->batch);
  for (int i = 0; i < step->count; i++)
    if (step->rows[i] >= images->n)
      return cmkd_fail(err, CMKD_ERR_VALUE, "row %u of %u images", step->rows[i], images->n);
  return list == CMKD_LIST_TRAIN ? check_train_step(config, images, step, resident, err) : CMKD_OK;
}

int cmkd_label_rank(const float *logits, int classes, int label) {
  int rank = 0;
  for (int c = 0; c < classes; c++)
    rank += logits[c] > logits[label] || (c < label && logits[c] == logits[label]);
  return rank;
}

int cmkd_label_rank_double(const double *logits, int classes, int label) {
  int rank = 0;
  for (int c = 0; c < classes; c++)
    rank += logits[c] > logits[label] || (c < label && logits[c] == logits[label]);
  return rank;
}

/* ---- results ---- */

void cmkd_results_free(cmkd_results *results) {
  free(results->result);
  *results = (cmkd_results){0};
}

cmkd_status cmkd_results_reserve(cmkd_results *results, int more, cmkd_error *err) {
  const int wanted = results->count + more;
  if (wanted <= results->capacity) return CMKD_OK;
  const int capacity = wanted < 32 ? 64 : 2 * wanted;
  cmkd_step_result *bigger = realloc(results->result, (size_t)capacity * sizeof *bigger);
  if (!bigger) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory keeping step results");
  results->result = bigger;
  results->capacity = capacity;
  return CMKD_OK;
}

cmkd_status cmkd_results_add(cmkd_results *results, cmkd_step_result **out, cmkd_error *err) {
  *out = NULL;
  CMKD_TRY(cmkd_results_reserve(results, 1, err));
  *out = &results->result[results->count++];
  **out = (cmkd_step_result){.loss.bad_row = -1, .loss.blocks = NAN};
  return CMKD_OK;
}

void cmkd_results_take(cmkd_results *results, cmkd_step_result *out, int *k) {
  const int count = results->count < *k ? results->count : *k;
  *k = count;
  if (!count) return;
  memcpy(out, results->result, (size_t)count * sizeof *out);
  memmove(results->result, results->result + count, (size_t)(results->count - count) * sizeof *out);
  results->count -= count;
}
