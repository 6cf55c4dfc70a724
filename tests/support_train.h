/* A data set small enough to train on in a test, and the words that tests of cmkd-train share. */
#ifndef CMKD_TESTS_SUPPORT_TRAIN_H
#define CMKD_TESTS_SUPPORT_TRAIN_H
#include "tests/support.h"

#define TINY_TRAIN 86 /* at batch 32: two full batches and one of 22 */
#define TINY_TEST 70

/* Sanitized kernels are fifty times slower: whole runs are shorter there. */
#ifdef __SANITIZE_ADDRESS__
#define RUN_LENGTH(usual, sanitized) sanitized
#else
#define RUN_LENGTH(usual, sanitized) usual
#endif

/* "mnist:DIR" of made-up IDX files, ten noisy patterns, always the same; written once a program. */
const char *tiny_data(void);
/* Another one of the same shape with other pixels. */
const char *tiny_other_data(void);
/* "$CMKD_BUILD/name", or NULL after a SKIP line. Also asks OpenMP not to spin, which helps on a busy machine. */
const char *program(const char *name);
/* SHA-256 of a file; "" where it cannot be read. One of 8 static buffers. */
const char *sha256_of(const char *format, ...) CMKD_PRINTF(1, 2);
/* A text file in one of 4 static buffers of 64 KiB; "" where it cannot be read. */
const char *text_of(const char *format, ...) CMKD_PRINTF(1, 2);
#endif
