/* Which instruction sets this machine runs. $CMKD_ISA=baseline|avx2|avx512 lowers the answer (tests, benchmarks). */
#ifndef CMKD_BASE_CPU_H
#define CMKD_BASE_CPU_H
typedef enum cmkd_isa { CMKD_ISA_BASELINE = 0, CMKD_ISA_AVX2 = 1, CMKD_ISA_AVX512 = 2 } cmkd_isa;
cmkd_isa cmkd_cpu_isa(void);            /* avx2 means AVX2 + FMA + F16C; avx512 means F + BW + VL + DQ on top */
const char *cmkd_isa_name(cmkd_isa isa);
int cmkd_cpu_count(void);               /* usable cores (affinity mask), at least 1 */
#endif
