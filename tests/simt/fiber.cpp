#include "tests/simt/fiber.h"
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN_START(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define ASAN_FINISH(save, bottom, size) __sanitizer_finish_switch_fiber(save, bottom, size)
#define ASAN_CLEAN(p, size) __asan_unpoison_memory_region(p, size)
#else
#define ASAN_START(save, bottom, size) ((void)(save))
#define ASAN_FINISH(save, bottom, size) ((void)(save))
#define ASAN_CLEAN(p, size) ((void)(p))
#endif

namespace simt {

static void *host_sp, *host_fake;
static const void *host_stack;
static size_t host_stack_bytes;

#if defined(__x86_64__)
extern "C" void cmkd_simt_switch(void **save, void *to);
__asm__(".text\n.globl cmkd_simt_switch\n.hidden cmkd_simt_switch\n.type cmkd_simt_switch,@function\n"
        "cmkd_simt_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n.size cmkd_simt_switch,.-cmkd_simt_switch\n");
static void to_fiber(fiber &f) { cmkd_simt_switch(&host_sp, f.sp); }
static void to_host(fiber &f) { cmkd_simt_switch(&f.sp, host_sp); }
#else
static ucontext_t host_context;
static void to_fiber(fiber &f) { swapcontext(&host_context, &f.context); }
static void to_host(fiber &f) { swapcontext(&f.context, &host_context); }
#endif

bool fiber_create(fiber &f) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *p =
      mmap(nullptr, page + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return false;
  mprotect(p, page, PROT_NONE); /* an overflow faults instead of reaching the neighbour */
  f.stack = (char *)p + page;
  return true;
}

static void (*start_entry)();
/* The first thing on a new stack. */
static void begin() {
  ASAN_FINISH(nullptr, &host_stack, &host_stack_bytes);
  start_entry();
}

void fiber_start(fiber &f, void (*entry)()) {
  ASAN_CLEAN(f.stack, STACK_BYTES); /* an abandoned fiber leaves its frames poisoned */
  start_entry = entry;
  f.fake = nullptr;
#if defined(__x86_64__)
  void **top = (void **)(f.stack + STACK_BYTES - 64);
  *--top = nullptr; /* the caller's frame: keeps the stack aligned as after a call */
  *--top = (void *)begin;
  for (int i = 0; i < 6; i++)
    *--top = nullptr;
  f.sp = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = STACK_BYTES;
  f.context.uc_link = nullptr;
  makecontext(&f.context, begin, 0);
#endif
}

void fiber_enter(fiber &f) {
  ASAN_START(&host_fake, f.stack, STACK_BYTES);
  to_fiber(f);
  ASAN_FINISH(host_fake, nullptr, nullptr);
}

void fiber_yield(fiber &f) {
  ASAN_START(&f.fake, host_stack, host_stack_bytes);
  to_host(f);
  ASAN_FINISH(f.fake, &host_stack, &host_stack_bytes);
}

void fiber_leave(fiber &f) {
  ASAN_START(nullptr, host_stack, host_stack_bytes);
  to_host(f);
}
} // namespace simt
