/* From an operation list to what a backend executes: items in phases, and where every activation and gradient lies.
 *
 * A phase is a run of items that one thread may do image by image. Between phases stands a barrier, because batch norm
 * needs sums over the whole batch: at the start of a phase every thread combines, for itself, the sums that the phase
 * before it left (forward: before FORWARD of a batch norm; backward: before NORM_BACKWARD). Inside a phase a thread
 * takes its images in chunks that stay in the second-level cache from item to item.
 *
 *   forward   [gather conv1 moments] | [norm1 conv2 moments] | [norm2 ... globalpool linear]
 *   backward  [linear globalpool sums2] | [backward2 conv2 sums1] | [backward1 conv1]
 *
 * Tensors that live within one phase lie in a buffer of the thread, of one chunk; the others, of the whole batch, lie
 * in one arena. Gradients there share memory where their lives do not overlap:
 *
 *   arena  | values that backward reads (training) | gradients that cross phases |
 *
 * On a device nothing is local: a list runs op by op over the whole batch (cmkd_plan_layout.local 0).
 *
 * Will not do: compute. */
#ifndef CMKD_KERNELS_PLAN_H
#define CMKD_KERNELS_PLAN_H
#include <stddef.h>
#include "cmkd/status.h"
#include "kernels/graph.h"

typedef enum cmkd_plan_item_kind {
  CMKD_PLAN_GATHER,        /* rows of uint8 images -> tensor 0 */
  CMKD_PLAN_FORWARD,       /* the op itself */
  CMKD_PLAN_FUSED,         /* INFER: convolution `op` with batch norm `norm`, its addition and activation */
  CMKD_PLAN_MOMENTS,       /* statistics of what batch norm `op` reads */
  CMKD_PLAN_NORM_SUMS,     /* batch norm's backward sums; masks its output gradient in place where that is passed on */
  CMKD_PLAN_NORM_BACKWARD, /* batch norm's input gradients */
  CMKD_PLAN_BACKWARD,      /* gradient of any other op */
  CMKD_PLAN_OUTPUT         /* INFER: every output of the graph that the caller asked for */
} cmkd_plan_item_kind;

typedef struct cmkd_plan_item {
  cmkd_plan_item_kind kind;
  int op;            /* -1: none (GATHER, OUTPUT) */
  int norm;          /* FUSED: the batch norm; else -1 */
  int accumulate[2]; /* backward: input gradient i has been written before and is added to */
  int skip[2];       /* backward: input gradient i is not needed, or is the same memory */
} cmkd_plan_item;

typedef struct cmkd_plan_phase {
  int first, items; /* plan->item[first .. first + items - 1] */
  int chunk;        /* images that a thread takes at a time */
} cmkd_plan_phase;

/* Numbers of one image. Local: at `offset * chunk` floats in the thread's buffer; else at `offset * batch` in the
 * arena. */
typedef struct cmkd_plan_buffer {
  int used, local;
  size_t offset, size;
} cmkd_plan_buffer;

/* How tensors lie. */
typedef struct cmkd_plan_layout {
  int pad;   /* channels are physically a multiple of this */
  int align; /* the numbers of one image begin at a multiple of this */
  int local; /* 1: tensors may lie in threads' buffers */
} cmkd_plan_layout;

typedef struct cmkd_plan {
  cmkd_plan_item *item;   /* (items) */
  cmkd_plan_phase *phase; /* (phases) */
  int items, phases;
  int backward;                   /* the first phase after the loss */
  cmkd_plan_buffer *value, *grad; /* (tensors) */
  size_t arena;                   /* numbers for every image of the batch */
  size_t local;                   /* numbers for every thread; without layout.local, in inference, for every image */
  cmkd_plan_layout layout;
} cmkd_plan;

#define CMKD_CHUNK_MAX 16

/* roots (count): tensors whose gradients are there before backward begins, written by the loss and other terms of the
 * objective; gradients of operations that read such a tensor are added to what is there. The image among them is passed
 * over. */
cmkd_status cmkd_plan_train(const cmkd_graph *graph, cmkd_plan_layout layout, const int *roots, int count,
                            cmkd_plan *plan, cmkd_error *err);
/* folded[i]: the batch norm that convolution i takes in, -1 for none (fills it). */
cmkd_status cmkd_plan_infer(const cmkd_graph *graph, cmkd_plan_layout layout, int *folded, cmkd_plan *plan,
                            cmkd_error *err);
void cmkd_plan_free(cmkd_plan *plan);
#endif
