/* Fibers: a stack with a guard page below it, and a switch. x86-64 in a few instructions, elsewhere ucontext. Tells
 * AddressSanitizer about each switch. Not here: threads, exceptions across switches, floating-point environments
 * (kernels change none). */
#ifndef CMKD_TESTS_SIMT_FIBER_H
#define CMKD_TESTS_SIMT_FIBER_H
#include <stddef.h>
#include <stdint.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

struct fiber {
  char *stack = nullptr; /* lowest usable byte */
  void *sp = nullptr;
  void *fake = nullptr; /* AddressSanitizer's */
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

const size_t STACK_BYTES = 128 * 1024;

bool fiber_create(fiber &f);                 /* once; false when out of memory */
void fiber_start(fiber &f, void (*entry)()); /* (re)sets the fiber to call `entry`, which must end with fiber_leave */
void fiber_enter(fiber &f);                  /* from the scheduler into f */
void fiber_yield(fiber &f);                  /* from f back to the scheduler */
void fiber_leave(fiber &f);                  /* the same for the last time */
} // namespace simt
#endif
