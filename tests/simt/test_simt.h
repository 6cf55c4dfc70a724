#ifndef CMKD_TESTS_SIMT_TEST_SIMT_H
#define CMKD_TESTS_SIMT_TEST_SIMT_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
int simt_run(const char *name, int threads, int out[64]);                           /* 1: no rule was broken */
int simt_hull(const double *values, int n, int threads, double *Y, uint32_t *list); /* blocks; Y (n + 1), list (n) */
int simt_sort(const float *values, int n, int *order,
              int *twice); /* n <= 1024: descending order, twice the ascending rank */
#ifdef __cplusplus
}
#endif
#endif
