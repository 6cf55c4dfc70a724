#include "cmkd/api.h"

const char *cmkd_version(void) { return CMKD_VERSION; }
