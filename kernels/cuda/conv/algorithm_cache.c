/* Which algorithm was selected for a request, remembered: by name, in a file per user for later runs and in the state
 * of a run that will be resumed. Not here: making plans from names (select.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "kernels/cuda/conv/select.h"

#define FILE_KIND "cmkd_conv_choices"
#define FILE_VERSION 1
#define FILE_LIMIT ((uint64_t)8 << 20)

void cmkd_conv_request_key(const cmkd_conv_request *r, char key[CONV_KEY_BYTES]) {
  static const char *const passes[] = {"forward", "fused", "data", "weights"}, *const acts[] = {"", " relu", " relu6"};
  const cmkd_cuda_conv_shape *s = &r->shape;
  const int fused = r->pass == CMKD_CONV_FORWARD_FUSED;
  snprintf(key, CONV_KEY_BYTES, "%s n%d %dx%dx%d k%d %dx%d s%d p%d g%d y%dx%dx%d %s %s%s%s%s%s%s", passes[r->pass],
           s->n, s->h, s->w, s->c, s->k, s->kh, s->kw, s->stride, s->pad, s->groups, s->oh, s->ow, s->y_stride,
           cmkd_dtype_name(s->dtype), cmkd_dtype_name(s->y_dtype), fused && r->residual ? " residual" : "",
           fused ? acts[r->act] : "", r->pass == CMKD_CONV_BACKWARD_DATA && r->accumulate ? " add" : "",
           s->dtype == CMKD_F32 && r->tf32 ? " tf32" : "", r->alone ? " alone" : "");
}

/* {FILE_KIND: version, "devices": {device: {request key: name}}}, or NULL when the text is something else. */
static json_t *parse(const char *text, size_t size) {
  json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
  json_t *devices = json_object_get(root, "devices");
  if (json_integer_value(json_object_get(root, FILE_KIND)) == FILE_VERSION && json_is_object(devices)) return root;
  json_decref(root);
  return NULL;
}

/* The names of one device: a new object, empty where there are none, NULL without memory. Entries of the wrong kind are
 * left out. *found: the device is there. */
static json_t *names_of(json_t *root, const char *device, int *found) {
  json_t *out = json_object(), *from = json_object_get(json_object_get(root, "devices"), device);
  *found = json_is_object(from);
  for (void *at = json_object_iter(from); at && out; at = json_object_iter_next(from, at)) {
    json_t *name = json_object_iter_value(at);
    const char *key = json_object_iter_key(at);
    if (strlen(key) >= CONV_KEY_BYTES || !json_is_string(name) || json_string_length(name) >= CONV_NAME_BYTES) continue;
    if (json_object_set(out, key, name)) {
      json_decref(out);
      out = NULL;
    }
  }
  return out;
}

static json_t *read_file(const char *path) {
  uint8_t *data;
  size_t size;
  if (cmkd_file_read(path, FILE_LIMIT, &data, &size, NULL) != CMKD_OK) return NULL;
  json_t *root = parse((const char *)data, size);
  free(data);
  return root;
}

static json_t *document(json_t *devices) {
  return json_pack("{s:i, s:o}", FILE_KIND, FILE_VERSION, "devices", devices);
}

json_t *cmkd_conv_cache_read(const cmkd_conv_selector *selector) {
  int found;
  json_t *root = selector->cache_path ? read_file(selector->cache_path) : NULL;
  json_t *names = names_of(root, selector->device, &found);
  json_decref(root);
  return names;
}

void cmkd_conv_cache_write(cmkd_conv_selector *selector) {
  int found;
  json_t *root = read_file(selector->cache_path); /* other processes may have written since: theirs stay */
  if (!root) root = document(json_object());
  json_t *ours = names_of(root, selector->device, &found);
  const int merged = json_object_update(ours, selector->cached) == 0;
  const int placed = json_object_set_new(json_object_get(root, "devices"), selector->device, ours) == 0;
  char *text = merged && placed ? json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS) : NULL;
  char *folder = cmkd_path_dir(selector->cache_path);
  if (!text || !folder || cmkd_make_dirs(folder, NULL) != CMKD_OK ||
      cmkd_file_write(selector->cache_path, &(cmkd_piece){text, strlen(text)}, 1, NULL) != CMKD_OK) {
    free(selector->cache_path);
    selector->cache_path = NULL;
  }
  free(text);
  free(folder);
  json_decref(root);
}

cmkd_status cmkd_conv_selector_save(const cmkd_conv_selector *selector, char **json, cmkd_error *err) {
  json_t *root = document(json_pack("{s:O}", selector->device, selector->selected));
  *json = root ? json_dumps(root, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  json_decref(root);
  return *json ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
}

cmkd_status cmkd_conv_selector_load(cmkd_conv_selector *selector, const char *json, int *used, cmkd_error *err) {
  *used = 0;
  json_t *root = parse(json, strlen(json));
  if (!root)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "the convolutions' choices in the run's state are not what this version writes");
  json_t *names = names_of(root, selector->device, used);
  json_decref(root);
  if (!names) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  json_decref(selector->resumed);
  selector->resumed = names;
  return CMKD_OK;
}
