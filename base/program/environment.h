/* Environment variables that users set, read for the library, which looks at none: programs, tests and benchmarks pass
 * on what stands here. Not for several threads at once. Includes what it fills in, kernels/backend.h among it: only
 * programs link base/program, the rest of base/ includes nothing above it. */
#ifndef CMKD_BASE_PROGRAM_ENVIRONMENT_H
#define CMKD_BASE_PROGRAM_ENVIRONMENT_H
#include "cmkd/dataset.h"
#include "kernels/backend.h"

/* First thing in main, before any thread: cmkd_environment_lower_isa, and bounds how long OpenMP's threads spin while
 * they wait for each other (by default milliseconds, which on a busy machine are taken from the thread that is waited
 * for). libgomp reads its environment before main, so the program starts itself once more; not where the user has set
 * OMP_WAIT_POLICY or GOMP_SPINCOUNT, nor where that is impossible. */
void cmkd_environment_start(char **argv);

/* CMKD_ISA=baseline|avx2|avx512 lowers the instruction set (tests, benchmarks). */
void cmkd_environment_lower_isa(void);

/* $CMKD_DATA as the first folder to search and $HOME for '~'. The strings belong to the environment. */
cmkd_dataset_options cmkd_environment_dataset_options(void);
/* cmkd_dataset_open with these. */
cmkd_status cmkd_environment_dataset(const char *spec, const char *split, cmkd_dataset **out, cmkd_error *err);

/* $CMKD_RECIPES, the folder of recipes; NULL: not set. */
const char *cmkd_environment_recipes(void);

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
 * The strings belong to the environment, or live until the next call. */
void cmkd_environment_backend(cmkd_backend_options *options);
#endif
