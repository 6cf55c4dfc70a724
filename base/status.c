#include "cmkd/status.h"
#include <stdarg.h>
#include <stdio.h>

cmkd_status cmkd_fail(cmkd_error *err, cmkd_status status, const char *format, ...) {
  if (!err) return status;
  char message[sizeof err->message]; /* the arguments may live in err->message */
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  err->status = status;
  for (size_t i = 0; i < sizeof message; i++) {
    /* a hostile file name must not fake a second line */
    err->message[i] = (message[i] > 0 && message[i] < ' ') ? '?' : message[i];
    if (!message[i]) break;
  }
  return status;
}
