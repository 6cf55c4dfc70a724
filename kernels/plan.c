#include "kernels/plan.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES (320 << 10) /* what a chunk's tensors may take of the second-level cache */
#define MOST_BYTES (2 << 20)    /* what they may take of the third where weights do not fit into the second */

void cmkd_plan_free(cmkd_plan *plan) {
  free(plan->item);
  free(plan->phase);
  free(plan->value);
  free(plan->grad);
  *plan = (cmkd_plan){0};
}

static size_t size_of(const cmkd_graph *graph, const cmkd_plan *plan, int tensor) {
  const size_t pad = (size_t)plan->layout.pad;
  cmkd_shape s = graph->tensor[tensor];
  return (size_t)s.h * (size_t)s.w * (((size_t)s.c + pad - 1) / pad * pad);
}
static size_t size_in_arena(const cmkd_graph *graph, const cmkd_plan *plan, int tensor) {
  const size_t align = (size_t)plan->layout.align;
  return (size_of(graph, plan, tensor) + align - 1) / align * align;
}

static cmkd_status plan_alloc(const cmkd_graph *graph, cmkd_plan_layout layout, cmkd_plan *plan, cmkd_error *err) {
  size_t ops = (size_t)graph->ops, tensors = (size_t)graph->tensors;
  *plan = (cmkd_plan){.layout = layout};
  plan->item = calloc(4 * ops + 4, sizeof *plan->item);
  plan->phase = calloc(4 * ops + 4, sizeof *plan->phase);
  plan->value = calloc(tensors, sizeof *plan->value);
  plan->grad = calloc(tensors, sizeof *plan->grad);
  if (plan->item && plan->phase && plan->value && plan->grad) return CMKD_OK;
  cmkd_plan_free(plan);
  return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning `%s`", graph->arch);
}

static cmkd_plan_item *add_step(cmkd_plan *plan, cmkd_plan_item_kind kind, int op) {
  cmkd_plan_item *step = &plan->item[plan->items++];
  *step = (cmkd_plan_item){.kind = kind, .op = op, .norm = -1};
  plan->phase[plan->phases - 1].items++;
  return step;
}

static void new_phase(cmkd_plan *plan) {
  if (plan->phases && !plan->phase[plan->phases - 1].items) return;
  plan->phase[plan->phases++] = (cmkd_plan_phase){plan->items, 0, 1};
}

/* Batch norms of `tensor` gather its statistics in the phase that writes it. */
static void add_moments(const cmkd_graph *graph, cmkd_plan *plan, int tensor) {
  for (int i = 0; i < graph->ops; i++)
    if (graph->op[i].kind == CMKD_OP_NORM && graph->op[i].in[0] == tensor) add_step(plan, CMKD_PLAN_MOMENTS, i);
}

static void plan_forward(const cmkd_graph *graph, cmkd_plan *plan, int *written) {
  new_phase(plan);
  add_step(plan, CMKD_PLAN_GATHER, -1);
  add_moments(graph, plan, 0);
  written[0] = 0;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    if (op->kind == CMKD_OP_NORM && written[op->in[0]] == plan->phases - 1) new_phase(plan);
    add_step(plan, CMKD_PLAN_FORWARD, i);
    written[op->out] = plan->phases - 1;
    add_moments(graph, plan, op->out);
  }
}

/* Gradient lives, in phases; `root` follows gradients that are the same memory. */
typedef struct life {
  int written, first, last, root;
} life;

static void touch(life *lives, int tensor, int phase) {
  life *l = &lives[lives[tensor].root];
  if (l->first < 0) l->first = phase;
  l->last = phase;
}

static void write_input(const cmkd_plan *plan, cmkd_plan_item *step, life *lives, int input, int tensor) {
  if (tensor <= 0) {
    step->skip[input] = 1;
    return;
  } /* none, or the image, whose gradient nobody wants */
  step->accumulate[input] = lives[tensor].written;
  lives[tensor].written = 1;
  touch(lives, tensor, plan->phases - 1);
}

static void plan_backward(const cmkd_graph *graph, const int *roots, int count, cmkd_plan *plan, life *lives) {
  for (int t = 0; t < graph->tensors; t++)
    lives[t] = (life){0, -1, -1, t};
  new_phase(plan);
  plan->backward = plan->phases - 1;
  for (int i = 0; i < count; i++) { /* between the last forward phase and the first backward one */
    if (roots[i] <= 0) continue;
    lives[roots[i]].written = 1;
    touch(lives, roots[i], plan->backward - 1);
  }
  for (int i = graph->ops - 1; i >= 0; i--) {
    const cmkd_op *op = &graph->op[i];
    if (!lives[op->out].written) continue; /* nothing that counts reads it */
    cmkd_plan_item *step;
    if (op->kind == CMKD_OP_NORM) {
      add_step(plan, CMKD_PLAN_NORM_SUMS, i);
      touch(lives, op->out, plan->phases - 1);
      new_phase(plan);
      step = add_step(plan, CMKD_PLAN_NORM_BACKWARD, i);
      touch(lives, op->out, plan->phases - 1);
      write_input(plan, step, lives, 0, op->in[0]);
      if (op->in[1] > 0 && !lives[op->in[1]].written) { /* the masked output gradient is the shortcut's gradient */
        lives[op->in[1]].root = lives[op->out].root;
        lives[op->in[1]].written = 1;
        step->skip[1] = 1;
      } else
        write_input(plan, step, lives, 1, op->in[1]);
    } else {
      step = add_step(plan, CMKD_PLAN_BACKWARD, i);
      touch(lives, op->out, plan->phases - 1);
      write_input(plan, step, lives, 0, op->in[0]);
      write_input(plan, step, lives, 1, op->in[1]);
    }
  }
  if (!plan->phase[plan->phases - 1].items) plan->phases--;
}

/* Gradients that cross phases share arena slots, smallest fitting first, in order of birth. */
static cmkd_status place_gradients(const cmkd_graph *graph, cmkd_plan *plan, const life *lives, size_t *local,
                                   cmkd_error *err) {
  typedef struct slot {
    size_t offset, size;
    int last;
  } slot;
  slot *slots = calloc((size_t)graph->tensors, sizeof *slots);
  int count = 0;
  if (!slots) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning `%s`", graph->arch);
  for (int phase = plan->backward - 1; phase < plan->phases; phase++)
    for (int t = 0; t < graph->tensors; t++) {
      const life *l = &lives[t];
      if (l->root != t || l->first != phase) continue;
      cmkd_plan_buffer *place = &plan->grad[t];
      const size_t capacity = size_in_arena(graph, plan, t);
      *place = (cmkd_plan_buffer){1, plan->layout.local && l->first == l->last, 0, size_of(graph, plan, t)};
      if (place->local) {
        place->offset = local[phase];
        local[phase] += capacity;
        continue;
      }
      slot *best = NULL;
      for (int s = 0; s < count; s++)
        if (slots[s].last < phase && slots[s].size >= capacity && (!best || slots[s].size < best->size))
          best = &slots[s];
      if (!best) {
        best = &slots[count++];
        *best = (slot){plan->arena, capacity, 0};
        plan->arena += capacity;
      }
      best->last = l->last;
      place->offset = best->offset;
    }
  for (int t = 0; t < graph->tensors; t++)
    if (lives[t].root != t) {
      int root = t;
      while (lives[root].root != root)
        root = lives[root].root;
      plan->grad[t] = plan->grad[root];
    }
  free(slots);
  return CMKD_OK;
}

/* Weights that an op reads for every chunk, in bytes. */
static size_t weights_of(const cmkd_graph *graph, int op) {
  const int p = cmkd_op_traits_of(graph->op[op].kind)->weighted ? graph->op[op].param[0] : -1;
  return p < 0 ? 0 : sizeof(float) * (size_t)graph->param[p].count;
}

/* Chunks: as many images as keep everything that the phase's steps touch in cache; where a layer's weights do not fit
 * there either, as many as are worth reading them for. */
static void choose_chunks(const cmkd_graph *graph, cmkd_plan *plan, const size_t *local) {
  for (int p = 0; p < plan->phases; p++) {
    cmkd_plan_phase *phase = &plan->phase[p];
    size_t largest = 1, weights = 0;
    for (int s = phase->first; s < phase->first + phase->items; s++) {
      const cmkd_plan_item *step = &plan->item[s];
      size_t bytes = 0;
      if (step->op >= 0)
        for (int t = 0; t < 3; t++) {
          int tensor = t < 2 ? graph->op[step->op].in[t] : graph->op[step->op].out;
          if (tensor >= 0) bytes += sizeof(float) * size_of(graph, plan, tensor);
        }
      if (step->kind == CMKD_PLAN_BACKWARD) bytes *= 2;
      largest = bytes > largest ? bytes : largest;
      if (step->op >= 0 && weights_of(graph, step->op) > weights) weights = weights_of(graph, step->op);
    }
    size_t chunk = (weights > CHUNK_BYTES ? weights > MOST_BYTES ? MOST_BYTES : weights : CHUNK_BYTES) / largest;
    phase->chunk = chunk < 1 ? 1 : chunk > CMKD_CHUNK_MAX ? CMKD_CHUNK_MAX : (int)chunk;
    size_t floats = local ? local[p] * (size_t)phase->chunk : 0;
    plan->local = floats > plan->local ? floats : plan->local;
  }
}

cmkd_status cmkd_plan_train(const cmkd_graph *graph, cmkd_plan_layout layout, const int *roots, int count,
                            cmkd_plan *plan, cmkd_error *err) {
  CMKD_TRY(plan_alloc(graph, layout, plan, err));
  int *written = calloc((size_t)graph->tensors, sizeof *written);
  life *lives = calloc((size_t)graph->tensors, sizeof *lives);
  size_t *local = calloc(4 * (size_t)graph->ops + 4, sizeof *local);
  cmkd_status status =
      written && lives && local ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning `%s`", graph->arch);
  if (status == CMKD_OK) {
    for (int t = 0; t < graph->tensors; t++) {
      plan->value[t] = (cmkd_plan_buffer){1, 0, plan->arena, size_of(graph, plan, t)};
      plan->arena += size_in_arena(graph, plan, t);
    }
    plan_forward(graph, plan, written);
    plan_backward(graph, roots, count, plan, lives);
    status = place_gradients(graph, plan, lives, local, err);
  }
  if (status == CMKD_OK) choose_chunks(graph, plan, local);
  free(written);
  free(lives);
  free(local);
  if (status != CMKD_OK) cmkd_plan_free(plan);
  return status;
}

/* ---- inference ---- */

static int is_output(const cmkd_graph *graph, int tensor) {
  for (int i = 0; i < graph->outputs; i++)
    if (graph->output[i].tensor == tensor) return 1;
  return 0;
}

/* A batch norm folds into the convolution before it when nothing else reads the convolution's result. */
static void find_folds(const cmkd_graph *graph, int *folded) {
  for (int i = 0; i < graph->ops; i++) {
    int readers = 0, norm = -1, out = graph->op[i].out;
    folded[i] = -1;
    if (graph->op[i].kind != CMKD_OP_CONV || is_output(graph, out)) continue;
    for (int j = 0; j < graph->ops; j++)
      for (int k = 0; k < 2; k++)
        if (graph->op[j].in[k] == out) {
          readers++;
          if (k == 0 && graph->op[j].kind == CMKD_OP_NORM) norm = j;
        }
    if (readers == 1) folded[i] = norm;
  }
}

/* Everything is local to the thread: one arena of a chunk, in which a tensor's room is free again after its last
 * reader. */
static cmkd_status place_values(const cmkd_graph *graph, cmkd_plan *plan, cmkd_error *err) {
  typedef struct span {
    size_t offset, size;
    int last;
  } span;
  span *live = calloc((size_t)graph->tensors + 1, sizeof *live);
  int *last = calloc((size_t)graph->tensors, sizeof *last), count = 0;
  if (!live || !last) {
    free(live);
    free(last);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning `%s`", graph->arch);
  }
  for (int s = 0; s < plan->items; s++) {
    const cmkd_plan_item *step = &plan->item[s];
    if (step->op < 0) continue;
    for (int i = 0; i < 2; i++) {
      if (graph->op[step->op].in[i] >= 0) last[graph->op[step->op].in[i]] = s;
      if (step->norm >= 0 && i == 1 && graph->op[step->norm].in[1] >= 0) last[graph->op[step->norm].in[1]] = s;
    }
  }
  for (int i = 0; i < graph->outputs; i++)
    last[graph->output[i].tensor] = plan->items;
  size_t top = 0;
  for (int s = 0; s < plan->items; s++) {
    const cmkd_plan_item *step = &plan->item[s];
    if (step->kind == CMKD_PLAN_OUTPUT) continue;
    int kept = 0, out = step->op < 0 ? 0 : graph->op[step->norm >= 0 ? step->norm : step->op].out;
    for (int i = 0; i < count; i++)
      if (live[i].last >= s) live[kept++] = live[i];
    count = kept;
    size_t at = 0, size = size_in_arena(graph, plan, out);
    int i = 0;
    while (i < count && live[i].offset - at < size) {
      at = live[i].offset + live[i].size;
      i++;
    } /* live is sorted by offset */
    memmove(&live[i + 1], &live[i], (size_t)(count - i) * sizeof *live);
    live[i] = (span){at, size, last[out] > s ? last[out] : s};
    count++;
    plan->value[out] = (cmkd_plan_buffer){1, 1, at, size_of(graph, plan, out)};
    top = at + size > top ? at + size : top;
  }
  free(live);
  free(last);
  plan->local = top;
  return CMKD_OK;
}

cmkd_status cmkd_plan_infer(const cmkd_graph *graph, cmkd_plan_layout layout, int *folded, cmkd_plan *plan,
                            cmkd_error *err) {
  CMKD_TRY(plan_alloc(graph, layout, plan, err));
  find_folds(graph, folded);
  new_phase(plan);
  add_step(plan, CMKD_PLAN_GATHER, -1);
  for (int i = 0; i < graph->ops; i++) {
    if (folded[i] >= 0) continue;
    int conv = -1;
    for (int j = 0; j < i && conv < 0; j++)
      if (folded[j] == i) conv = j;
    if (conv < 0)
      add_step(plan, CMKD_PLAN_FORWARD, i);
    else
      add_step(plan, CMKD_PLAN_FUSED, conv)->norm = i;
  }
  add_step(plan, CMKD_PLAN_OUTPUT, -1);
  cmkd_status status = place_values(graph, plan, err);
  if (status != CMKD_OK) {
    cmkd_plan_free(plan);
    return status;
  }
  if (!layout.local) return CMKD_OK;
  size_t chunk = 2 * CHUNK_BYTES / (sizeof(float) * plan->local + 1);
  plan->phase[0].chunk = chunk < 1 ? 1 : chunk > CMKD_CHUNK_MAX ? CMKD_CHUNK_MAX : (int)chunk;
  plan->local *= (size_t)plan->phase[0].chunk;
  return CMKD_OK;
}
