/* Errors are values. A function that can fail returns a cmkd_status and, when that is not CMKD_OK, has filled the
 * caller's cmkd_error with one line that names the file, the thing and the remedy. `err` may be NULL everywhere: then
 * the status is all there is. docs/examples/status.c is a whole program.
 *
 * True of the whole library: it prints nothing, ends no process, installs no signal handler and reads no environment
 * variable. Results are written through pointers behind the inputs; a pointer may be NULL only where that is said, and
 * after a failure an output is NULL (a handle) or unspecified (numbers). A handle is freed by the close or free
 * function of its type.
 *
 * Options are structs. Zeros and NULL are the defaults that their comments name, but in structs that come with a
 * function ..._default: there NaN means the default where 0 is itself a choice. */
#ifndef CMKD_STATUS_H
#define CMKD_STATUS_H
#include "cmkd/api.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cmkd_status {
  CMKD_OK = 0,
  CMKD_ERR_USAGE,       /* the caller's words are wrong: programs exit 2; all others exit 1 */
  CMKD_ERR_IO,          /* the system refused: open, read, write, disk full, permission */
  CMKD_ERR_FORMAT,      /* a file is truncated, corrupt or of another kind */
  CMKD_ERR_MISMATCH,    /* two good things that do not belong together */
  CMKD_ERR_VALUE,       /* NaN, Inf, label out of range */
  CMKD_ERR_MEMORY,      /* out of host or device memory */
  CMKD_ERR_UNSUPPORTED, /* this build or machine can't; the message says what is missing */
  CMKD_ERR_DEVICE,      /* the accelerator failed */
  CMKD_ERR_INTERRUPTED  /* a callback asked to stop: state was saved, the message says how to go on */
} cmkd_status;

typedef struct cmkd_error {
  cmkd_status status;
  char message[1024]; /* one line, no newline */
} cmkd_error;

#if defined(__GNUC__)
#define CMKD_PRINTF(fmt_index, args_index) __attribute__((format(printf, fmt_index, args_index)))
#else
#define CMKD_PRINTF(fmt_index, args_index)
#endif

/* Formats a message into *err (which may be NULL) and returns `status`: `return cmkd_fail(err, CMKD_ERR_IO, ...)`.
 * Bytes below 32 become '?', so that the message stays one line; arguments may point into err->message. For callbacks
 * and for programs that report their own failures in the same way. */
CMKD_API cmkd_status cmkd_fail(cmkd_error *err, cmkd_status status, const char *format, ...) CMKD_PRINTF(3, 4);

/* Forwards a failure to the caller of the function that it stands in, which must hold nothing that needs freeing. */
#define CMKD_TRY(expression) \
  do { \
    cmkd_status cmkd_try_status = (expression); \
    if (cmkd_try_status != CMKD_OK) return cmkd_try_status; \
  } while (0)

#ifdef __cplusplus
}
#endif
#endif
