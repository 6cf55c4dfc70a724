/* Which instruction sets this machine runs. $CMKD_ISA=baseline|avx2|avx512 lowers the answer (tests, benchmarks). */
#ifndef CMKD_BASE_CPU_H
#define CMKD_BASE_CPU_H
typedef enum cmkd_isa { CMKD_ISA_BASELINE = 0, CMKD_ISA_AVX2 = 1, CMKD_ISA_AVX512 = 2 } cmkd_isa;
cmkd_isa cmkd_cpu_isa(void); /* avx2 means AVX2 + FMA + F16C; avx512 means F + BW + VL + DQ on top */
const char *cmkd_isa_name(cmkd_isa isa);
int cmkd_cpu_count(void); /* usable cores (affinity mask), at least 1 */
/* First thing in main: bounds how long OpenMP's threads spin while they wait for each other (by default milliseconds,
 * which on a busy machine are taken from the thread that is waited for). libgomp reads its environment before main, so
 * the program starts itself once more; it returns where the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT, and where
 * that is not possible. */
void cmkd_cpu_bound_spinning(char **argv);
#endif
