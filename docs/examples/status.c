/* Errors and versions: how every call of the library is checked.
 *
 *     cc status.c $(pkg-config --cflags --libs cmkd) */
#include <stdio.h>
#include <string.h>
#include "cmkd/api.h"
#include "cmkd/status.h"
#include "cmkd/views.h"

/* A function of your own joins in: it returns a status, fills the caller's error, and forwards what others return. */
static cmkd_status check_policy(const char *name, cmkd_policy *policy, cmkd_error *err) {
  if (!*name) return cmkd_fail(err, CMKD_ERR_USAGE, "no augmentation is given");
  CMKD_TRY(cmkd_policy_parse(name, policy, err));
  return CMKD_OK;
}

int main(void) {
  /* headers and library may come from two installations */
  if (strcmp(cmkd_version(), CMKD_VERSION) != 0)
    printf("compiled for cmkd %s, running with %s\n", CMKD_VERSION, cmkd_version());

  static const char *const names[] = {"crop+flip", "", "corp"};
  for (int i = 0; i < 3; i++) {
    cmkd_error err;
    cmkd_policy policy;
    const cmkd_status status = check_policy(names[i], &policy, &err);
    if (status == CMKD_OK)
      printf("%s: %u variants\n", cmkd_policy_name(policy), cmkd_policy_variants(policy));
    else
      printf("status %d: %s\n", (int)status, err.message);
  }
  /* where the status says enough, there need be no error */
  cmkd_policy policy;
  return cmkd_policy_parse("nonsense", &policy, NULL) == CMKD_ERR_USAGE ? 0 : 1;
}
