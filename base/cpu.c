#include "base/cpu.h"
#include <sched.h>
#include <string.h>

static const char *const names[] = {"baseline", "avx2", "avx512"};
static cmkd_isa highest = CMKD_ISA_AVX512; /* set by tests and benchmarks alone */

const char *cmkd_isa_name(cmkd_isa isa) { return names[isa]; }

void cmkd_cpu_lower_isa(const char *name) {
  highest = CMKD_ISA_AVX512;
  for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
    if (!strcmp(name, names[i])) highest = (cmkd_isa)i;
}

static cmkd_isa machine_isa(void) {
  cmkd_isa isa = CMKD_ISA_BASELINE;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    isa = CMKD_ISA_AVX2; /* F16C came before AVX2 */
  if (isa && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi"))
    isa = CMKD_ISA_AVX512;
#endif
  return isa;
}

cmkd_isa cmkd_cpu_isa(void) {
  const cmkd_isa isa = machine_isa();
  return isa < highest ? isa : highest;
}

int cmkd_cpu_count(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}
