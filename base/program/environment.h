/* What environment variables say about backends, for programs, tests and benchmarks: the library itself reads none. */
#ifndef CMKD_BASE_PROGRAM_ENVIRONMENT_H
#define CMKD_BASE_PROGRAM_ENVIRONMENT_H
#include "kernels/backend.h"

/* Fills in what a variable decides and leaves threads, device and precision alone:
 *
 *   CMKD_CONV=direct|onednn    conv; CMKD_NO_ONEDNN=1 is the same as direct
 *   CMKD_CUDA_PLUGIN=FILE      plugin
 *   CMKD_CUDNN=FILE|off        cudnn
 *   CMKD_CUDA_PLANS=FILE       algorithm_file (empty: nowhere); else $XDG_CACHE_HOME or ~/.cache, cmkd/plans.json
 *   CMKD_CUDA_PROFILE=FILE     profile
 *   CMKD_CUDA_CHECK=1          check
 *   CMKD_CUDA_RESIDENT=0       streamed
 *   CMKD_CUDA_SELFCHECK=0      skip_selfcheck
 *
 * The strings belong to the environment, or live until the next call. Not for several threads at once. */
void cmkd_environment_backend(cmkd_backend_options *options);
#endif
