/* What a test says to the SIMT emulation. C and C++. */
#ifndef CMKD_TESTS_SIMT_EMULATE_H
#define CMKD_TESTS_SIMT_EMULATE_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { CMKD_SIMT_FORWARD = 0, CMKD_SIMT_REVERSE, CMKD_SIMT_RANDOM, CMKD_SIMT_ORDERS };

/* The order in which threads (between barriers), warps and blocks run from the next launch on. `seed` is for the random
 * one. */
void cmkd_simt_order(int order, unsigned seed);
/* What the first failed launch since the last call did wrong ("" when none did); forgets it. */
const char *cmkd_simt_problem(void);
/* Launches so far, and the most threads and shared bytes that a block had. */
typedef struct cmkd_simt_counts {
  long launches, blocks, threads_max;
  unsigned long shared_max;
} cmkd_simt_counts;
cmkd_simt_counts cmkd_simt_counted(void);
void cmkd_simt_count_reset(void);

/* Whether queued work waits for somebody to wait for it, as on a device (1), or is done at once (0, at first). */
void cmkd_simt_defer(int on);
/* Device memory there is, in bytes (0: no limit); and how much is in use. */
void cmkd_simt_memory(size_t limit);
size_t cmkd_simt_memory_used(void);
/* The launch after `number` more fails, and with it everything after it until the reset: a sticky error. */
void cmkd_simt_fail_launch(long number);
void cmkd_simt_reset(void);
/* All kernels are as if they had never been launched; and which was first captured into a graph before it had been ("":
 * none). */
void cmkd_simt_unload(void);
const char *cmkd_simt_unloaded(void);

#ifdef __cplusplus
}
#endif
#endif
