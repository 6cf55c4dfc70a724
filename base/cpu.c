#include "base/cpu.h"
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {"baseline", "avx2", "avx512"};

const char *cmkd_isa_name(cmkd_isa isa) { return names[isa]; }

cmkd_isa cmkd_cpu_isa(void) {
  cmkd_isa isa = CMKD_ISA_BASELINE;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    isa = CMKD_ISA_AVX2; /* F16C came before AVX2 */
  if (isa && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi"))
    isa = CMKD_ISA_AVX512;
#endif
  const char *asked = getenv("CMKD_ISA");
  for (int i = 0; asked && i < (int)isa; i++)
    if (!strcmp(asked, names[i])) return (cmkd_isa)i;
  return isa;
}

int cmkd_cpu_count(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}

#define SPINS \
  "10000" /* some 0.2 ms: longer than threads with equal shares wait for each other, shorter than a time slice */

void cmkd_cpu_bound_spinning(char **argv) {
  if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || setenv("GOMP_SPINCOUNT", SPINS, 1) != 0) return;
  execv("/proc/self/exe", argv);
}
