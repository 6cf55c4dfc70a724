/* JSON builders that remember a failure. See json.h. */
#include "base/json.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static cmkd_json begin(json_t *value) { return (cmkd_json){.value = value, .failed = !value}; }

cmkd_json cmkd_json_object(void) { return begin(json_object()); }
cmkd_json cmkd_json_array(void) { return begin(json_array()); }

void cmkd_json_set(cmkd_json *object, const char *key, json_t *value) {
  if (json_object_set_new(object->value, key, value) != 0) object->failed = 1;
}

void cmkd_json_append(cmkd_json *array, json_t *value) {
  if (json_array_append_new(array->value, value) != 0) array->failed = 1;
}

json_t *cmkd_json_end(cmkd_json *json) {
  json_t *value = json->value;
  if (json->failed) {
    json_decref(value);
    value = NULL;
  }
  *json = (cmkd_json){.failed = 1};
  return value;
}

/* Bytes of the UTF-8 character that begins at `text`; 0: none does. Unicode Standard, table 3-7: what the first byte
 * may be, what the second may then be; all others are 80 to bf. */
static size_t character_length(const char *text) {
  static const struct {
    unsigned char first[2], second[2];
    size_t length;
  } forms[] = {
      {{0x01, 0x7f}, {0, 0}, 1},       {{0xc2, 0xdf}, {0x80, 0xbf}, 2}, {{0xe0, 0xe0}, {0xa0, 0xbf}, 3},
      {{0xe1, 0xec}, {0x80, 0xbf}, 3}, {{0xed, 0xed}, {0x80, 0x9f}, 3}, {{0xee, 0xef}, {0x80, 0xbf}, 3},
      {{0xf0, 0xf0}, {0x90, 0xbf}, 4}, {{0xf1, 0xf3}, {0x80, 0xbf}, 4}, {{0xf4, 0xf4}, {0x80, 0x8f}, 4},
  };
  const unsigned char *s = (const unsigned char *)text;
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    if (s[0] < forms[i].first[0] || s[0] > forms[i].first[1]) continue;
    if (forms[i].length == 1) return 1;
    if (s[1] < forms[i].second[0] || s[1] > forms[i].second[1]) return 0;
    for (size_t k = 2; k < forms[i].length; k++) /* the text's end is a 0, which ends this */
      if (s[k] < 0x80 || s[k] > 0xbf) return 0;
    return forms[i].length;
  }
  return 0;
}

json_t *cmkd_json_string(const char *text) {
  static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
  json_t *whole = json_string(text);
  if (whole) return whole;
  char *copy = malloc(3 * strlen(text) + 1);
  if (!copy) return NULL;
  size_t used = 0;
  while (*text) {
    size_t length = character_length(text);
    if (length) {
      memcpy(copy + used, text, length);
      used += length;
      text += length;
    } else {
      memcpy(copy + used, replacement, 3);
      used += 3;
      text++;
    }
  }
  copy[used] = 0;
  json_t *value = json_string(copy);
  free(copy);
  return value;
}

json_t *cmkd_json_number(double value) { return isfinite(value) ? json_real(value) : json_null(); }
