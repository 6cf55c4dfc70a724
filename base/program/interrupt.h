/* Ctrl-C and SIGTERM as a question the main loop asks. Programs install it; the library asks only by callbacks. */
#ifndef CMKD_BASE_PROGRAM_INTERRUPT_H
#define CMKD_BASE_PROGRAM_INTERRUPT_H
void cmkd_interrupt_install(void); /* SIGINT, SIGTERM; a second signal kills the usual way */
int cmkd_interrupted(void);        /* 0, or the signal's number */
#endif
