#include "base/program/interrupt.h"
#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t caught;

static void on_signal(int number) {
  caught = number;
  signal(SIGINT, SIG_DFL); /* whichever of the two comes next ends the program */
  signal(SIGTERM, SIG_DFL);
}

void cmkd_interrupt_install(void) {
  const int numbers[] = {SIGINT, SIGTERM};
  for (int i = 0; i < 2; i++) {
    struct sigaction action = {0}, old;
    if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN)
      continue; /* nohup, background jobs of plain shells */
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(numbers[i], &action, NULL);
  }
}

int cmkd_interrupted(void) { return caught; }
