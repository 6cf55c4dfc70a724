/* Building JSON whose failures are not lost. jansson answers NULL where memory is short, a number is not finite or a
 * text is not UTF-8, and takes NULL as a value that it then refuses: a chain of unchecked calls loses keys in silence.
 * Here a builder remembers the first failure, and the end of it tells.
 *
 *   cmkd_json o = cmkd_json_object();
 *   cmkd_json_set(&o, "epoch", json_integer(3));
 *   cmkd_json_set(&o, "folder", cmkd_json_string(path));
 *   json_t *value = cmkd_json_end(&o);   // NULL when anything failed; good as a value of another builder
 *
 * One builder belongs to one thread. */
#ifndef CMKD_BASE_JSON_H
#define CMKD_BASE_JSON_H
#include <jansson.h>
#include "cmkd/status.h"

typedef struct cmkd_json {
  json_t *value; /* the object or array so far, owned by the builder until cmkd_json_end */
  int failed;
} cmkd_json;

cmkd_json cmkd_json_object(void);
cmkd_json cmkd_json_array(void);
/* Both take over `value`, as json_object_set_new does. NULL as `value` is a failure, which the builder remembers. */
void cmkd_json_set(cmkd_json *object, const char *key, json_t *value);
void cmkd_json_append(cmkd_json *array, json_t *value);
/* What was built, now the caller's, or NULL when a call since the beginning failed. The builder is empty afterwards. */
json_t *cmkd_json_end(cmkd_json *json);

/* A text of any bytes, such as a path: what is not UTF-8 becomes U+FFFD. NULL where memory is short. */
json_t *cmkd_json_string(const char *text);
/* JSON knows no NaN and no infinity: those become null. */
json_t *cmkd_json_number(double value);
#endif
