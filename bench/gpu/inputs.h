/* What a training step's answers depend on beside the device, as digests: a file of answers made for other inputs, or
 * by another version of world.c, is told from a device that computes wrongly. */
#ifndef CMKD_BENCH_GPU_INPUTS_H
#define CMKD_BENCH_GPU_INPUTS_H
#include <jansson.h>
#include "bench/gpu/world.h"

/* o[what] = SHA-256 of all parameters. */
cmkd_status bench_digest_params(json_t *o, const char *what, const cmkd_graph *graph, const cmkd_params *params,
                                cmkd_error *err);
/* Into `o`: SHA-256 of images, labels, teacher rows, and of the rows and seeds of the first `steps` steps; and a small
 * network's loss on the double reference. */
cmkd_status bench_digest_inputs(json_t *o, const bench_data *data, const cmkd_loss *loss, int batch, int64_t steps,
                                cmkd_error *err);
#endif
