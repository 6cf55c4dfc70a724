/* Plans: phases, the places of values and gradients, and how many images a thread takes at a time. */
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

static cmkd_plan_item *add_item(cmkd_plan *plan, cmkd_plan_item_kind kind, int op) {
  cmkd_plan_item *item = &plan->item[plan->items++];
  *item = (cmkd_plan_item){.kind = kind, .op = op, .norm = -1};
  plan->phase[plan->phases - 1].items++;
  return item;
}

static void new_phase(cmkd_plan *plan) {
  if (plan->phases && !plan->phase[plan->phases - 1].items) return;
  plan->phase[plan->phases++] = (cmkd_plan_phase){plan->items, 0, 1};
}

/* Batch norms of `tensor` gather its statistics in the phase that writes it. */
static void add_moments(const cmkd_graph *graph, cmkd_plan *plan, int tensor) {
  for (int i = 0; i < graph->ops; i++)
    if (graph->op[i].kind == CMKD_OP_NORM && graph->op[i].in[0] == tensor) add_item(plan, CMKD_PLAN_MOMENTS, i);
}

/* written_in (tensors): the phase that writes a tensor. */
static void plan_forward(const cmkd_graph *graph, cmkd_plan *plan, int *written_in) {
  new_phase(plan);
  add_item(plan, CMKD_PLAN_GATHER, -1);
  add_moments(graph, plan, 0);
  written_in[0] = 0;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    if (op->kind == CMKD_OP_NORM && written_in[op->in[0]] == plan->phases - 1) new_phase(plan);
    add_item(plan, CMKD_PLAN_FORWARD, i);
    written_in[op->out] = plan->phases - 1;
    add_moments(graph, plan, op->out);
  }
}

/* One tensor's gradient during the planning of backward. */
typedef struct life {
  int has_gradient; /* something planned so far writes it */
  int first, last;  /* the phases in which it must be there; -1: none */
  int alias_of;     /* the tensor whose gradient is the same memory; itself: none is */
} life;

static void touch(life *lives, int tensor, int phase) {
  life *l = &lives[lives[tensor].alias_of];
  if (l->first < 0) l->first = phase;
  l->last = phase;
}

static void write_input(const cmkd_plan *plan, cmkd_plan_item *item, life *lives, int input, int tensor) {
  if (tensor <= 0) { /* none, or the image, whose gradient is not needed */
    item->skip[input] = 1;
    return;
  }
  item->accumulate[input] = lives[tensor].has_gradient;
  lives[tensor].has_gradient = 1;
  touch(lives, tensor, plan->phases - 1);
}

static void plan_backward(const cmkd_graph *graph, const int *roots, int count, cmkd_plan *plan, life *lives) {
  for (int t = 0; t < graph->tensors; t++)
    lives[t] = (life){0, -1, -1, t};
  new_phase(plan);
  plan->backward = plan->phases - 1;
  for (int i = 0; i < count; i++) { /* between the last forward phase and the first backward one */
    if (roots[i] <= 0) continue;
    lives[roots[i]].has_gradient = 1;
    touch(lives, roots[i], plan->backward - 1);
  }
  for (int i = graph->ops - 1; i >= 0; i--) {
    const cmkd_op *op = &graph->op[i];
    if (!lives[op->out].has_gradient) continue; /* no output with a gradient depends on it */
    cmkd_plan_item *item;
    if (op->kind == CMKD_OP_NORM) {
      add_item(plan, CMKD_PLAN_NORM_SUMS, i);
      touch(lives, op->out, plan->phases - 1);
      new_phase(plan);
      item = add_item(plan, CMKD_PLAN_NORM_BACKWARD, i);
      touch(lives, op->out, plan->phases - 1);
      write_input(plan, item, lives, 0, op->in[0]);
      if (op->in[1] > 0 && !lives[op->in[1]].has_gradient) { /* the masked output gradient is the shortcut's gradient */
        lives[op->in[1]].alias_of = lives[op->out].alias_of;
        lives[op->in[1]].has_gradient = 1;
        item->skip[1] = 1;
      } else
        write_input(plan, item, lives, 1, op->in[1]);
    } else {
      item = add_item(plan, CMKD_PLAN_BACKWARD, i);
      touch(lives, op->out, plan->phases - 1);
      write_input(plan, item, lives, 0, op->in[0]);
      write_input(plan, item, lives, 1, op->in[1]);
    }
  }
  if (!plan->phase[plan->phases - 1].items) plan->phases--;
}

/* Gradients that cross phases share ranges of the arena: each takes the smallest free one that is large enough, in the
 * order in which they are first written. */
static cmkd_status place_gradients(const cmkd_graph *graph, cmkd_plan *plan, const life *lives, size_t *local,
                                   cmkd_error *err) {
  typedef struct arena_range {
    size_t offset, size;
    int last; /* the last phase that needs it */
  } arena_range;
  arena_range *range = calloc((size_t)graph->tensors, sizeof *range);
  int count = 0;
  if (!range) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning `%s`", graph->arch);
  for (int phase = plan->backward - 1; phase < plan->phases; phase++)
    for (int t = 0; t < graph->tensors; t++) {
      const life *l = &lives[t];
      if (l->alias_of != t || l->first != phase) continue;
      cmkd_plan_buffer *place = &plan->grad[t];
      const size_t capacity = size_in_arena(graph, plan, t);
      *place = (cmkd_plan_buffer){1, plan->layout.local && l->first == l->last, 0, size_of(graph, plan, t)};
      if (place->local) {
        place->offset = local[phase];
        local[phase] += capacity;
        continue;
      }
      arena_range *best = NULL;
      for (int i = 0; i < count; i++)
        if (range[i].last < phase && range[i].size >= capacity && (!best || range[i].size < best->size))
          best = &range[i];
      if (!best) {
        best = &range[count++];
        *best = (arena_range){plan->arena, capacity, 0};
        plan->arena += capacity;
      }
      best->last = l->last;
      place->offset = best->offset;
    }
  for (int t = 0; t < graph->tensors; t++)
    if (lives[t].alias_of != t) {
      int owner = t;
      while (lives[owner].alias_of != owner)
        owner = lives[owner].alias_of;
      plan->grad[t] = plan->grad[owner];
    }
  free(range);
  return CMKD_OK;
}

/* Weights that an op reads for every chunk, in bytes. */
static size_t weights_of(const cmkd_graph *graph, int op) {
  const int p = cmkd_op_traits_of(graph->op[op].kind)->weighted ? graph->op[op].param[0] : -1;
  return p < 0 ? 0 : sizeof(float) * (size_t)graph->param[p].count;
}

static int clamp_chunk(size_t chunk) {
  if (chunk < 1) return 1;
  return chunk > CMKD_CHUNK_MAX ? CMKD_CHUNK_MAX : (int)chunk;
}

/* Chunks: as many images as keep everything that the phase's items touch in cache; where a layer's weights do not fit
 * there either, as many as are worth reading them for. */
static void choose_chunks(const cmkd_graph *graph, cmkd_plan *plan, const size_t *local) {
  for (int p = 0; p < plan->phases; p++) {
    cmkd_plan_phase *phase = &plan->phase[p];
    size_t largest = 1, weights = 0;
    for (int s = phase->first; s < phase->first + phase->items; s++) {
      const cmkd_plan_item *item = &plan->item[s];
      size_t bytes = 0;
      if (item->op >= 0)
        for (int t = 0; t < 3; t++) {
          int tensor = t < 2 ? graph->op[item->op].in[t] : graph->op[item->op].out;
          if (tensor >= 0) bytes += sizeof(float) * size_of(graph, plan, tensor);
        }
      if (item->kind == CMKD_PLAN_BACKWARD) bytes *= 2;
      largest = bytes > largest ? bytes : largest;
      if (item->op >= 0 && weights_of(graph, item->op) > weights) weights = weights_of(graph, item->op);
    }
    size_t budget = weights > CHUNK_BYTES ? weights : CHUNK_BYTES;
    if (budget > MOST_BYTES) budget = MOST_BYTES;
    phase->chunk = clamp_chunk(budget / largest);
    size_t floats = local ? local[p] * (size_t)phase->chunk : 0;
    plan->local = floats > plan->local ? floats : plan->local;
  }
}

cmkd_status cmkd_plan_train(const cmkd_graph *graph, cmkd_plan_layout layout, const int *roots, int count,
                            cmkd_plan *plan, cmkd_error *err) {
  CMKD_TRY(plan_alloc(graph, layout, plan, err));
  int *written_in = calloc((size_t)graph->tensors, sizeof *written_in);
  life *lives = calloc((size_t)graph->tensors, sizeof *lives);
  size_t *local = calloc(4 * (size_t)graph->ops + 4, sizeof *local);
  cmkd_status status = written_in && lives && local
                           ? CMKD_OK
                           : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning `%s`", graph->arch);
  if (status == CMKD_OK) {
    for (int t = 0; t < graph->tensors; t++) {
      plan->value[t] = (cmkd_plan_buffer){1, 0, plan->arena, size_of(graph, plan, t)};
      plan->arena += size_in_arena(graph, plan, t);
    }
    plan_forward(graph, plan, written_in);
    plan_backward(graph, roots, count, plan, lives);
    status = place_gradients(graph, plan, lives, local, err);
  }
  if (status == CMKD_OK) choose_chunks(graph, plan, local);
  free(written_in);
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

/* Everything is local to the thread: one arena of a chunk, in which a tensor's memory is free again after its
 * last reader. */
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
    const cmkd_plan_item *item = &plan->item[s];
    if (item->op < 0) continue;
    for (int i = 0; i < 2; i++) {
      if (graph->op[item->op].in[i] >= 0) last[graph->op[item->op].in[i]] = s;
      if (item->norm >= 0 && i == 1 && graph->op[item->norm].in[1] >= 0) last[graph->op[item->norm].in[1]] = s;
    }
  }
  for (int i = 0; i < graph->outputs; i++)
    last[graph->output[i].tensor] = plan->items;
  size_t top = 0;
  for (int s = 0; s < plan->items; s++) {
    const cmkd_plan_item *item = &plan->item[s];
    if (item->kind == CMKD_PLAN_OUTPUT) continue;
    int kept = 0, out = item->op < 0 ? 0 : graph->op[item->norm >= 0 ? item->norm : item->op].out;
    for (int i = 0; i < count; i++)
      if (live[i].last >= s) live[kept++] = live[i];
    count = kept;
    size_t at = 0, size = size_in_arena(graph, plan, out);
    int i = 0;
    /* `live` is sorted by offset: the first gap that is large enough. */
    while (i < count && live[i].offset - at < size) {
      at = live[i].offset + live[i].size;
      i++;
    }
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
  add_item(plan, CMKD_PLAN_GATHER, -1);
  for (int i = 0; i < graph->ops; i++) {
    if (folded[i] >= 0) continue;
    int conv = -1;
    for (int j = 0; j < i && conv < 0; j++)
      if (folded[j] == i) conv = j;
    if (conv < 0)
      add_item(plan, CMKD_PLAN_FORWARD, i);
    else
      add_item(plan, CMKD_PLAN_FUSED, conv)->norm = i;
  }
  add_item(plan, CMKD_PLAN_OUTPUT, -1);
  cmkd_status status = place_values(graph, plan, err);
  if (status != CMKD_OK) {
    cmkd_plan_free(plan);
    return status;
  }
  if (!layout.local) return CMKD_OK;
  size_t chunk = 2 * CHUNK_BYTES / (sizeof(float) * plan->local + 1);
  plan->phase[0].chunk = clamp_chunk(chunk);
  plan->local *= (size_t)plan->phase[0].chunk;
  return CMKD_OK;
}
