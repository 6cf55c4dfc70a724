/* OpenMP's functions for one thread. `make fuzz` compiles with clang and without OpenMP, so that a finding repeats and
 * no OpenMP runtime for clang has to be installed; the pragmas are then ignored. */
#ifndef CMKD_TESTS_SERIAL_OMP_H
#define CMKD_TESTS_SERIAL_OMP_H
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_num_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_procs(void) { return 1; }
static inline int omp_in_parallel(void) { return 0; }
static inline void omp_set_num_threads(int threads) { (void)threads; }
static inline void omp_set_dynamic(int dynamic) { (void)dynamic; }
#endif
