/* What this machine's processor offers. */
#ifndef CMKD_BASE_CPU_H
#define CMKD_BASE_CPU_H
typedef enum cmkd_isa { CMKD_ISA_BASELINE = 0, CMKD_ISA_AVX2 = 1, CMKD_ISA_AVX512 = 2 } cmkd_isa;
/* The highest instruction set that can be used. AVX2 means AVX2 + FMA + BMI2 (F16C came earlier), AVX512 means
 * F + BW + VL + DQ + VBMI on top. */
cmkd_isa cmkd_cpu_isa(void);
const char *cmkd_isa_name(cmkd_isa isa); /* "baseline", "avx2", "avx512" */
/* Lowers the answer of cmkd_cpu_isa from now on to the set of that name; a name that is none gives the machine's back.
 * For tests and benchmarks, through their main: the one setting of the library that holds for the whole process, and
 * not public. Call it before any thread and before the first use of the library: kernels are chosen once. */
void cmkd_cpu_lower_isa(const char *name);
int cmkd_cpu_count(void); /* usable cores (affinity mask), at least 1 */
#endif
