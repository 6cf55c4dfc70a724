/* What a weight file says about its network. See model_spec.h. */
#include "nets/model_spec.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "nets/fits.h"
#include "nets/params.h"
#include "nets/registry.h"

/* --arch auto: the one architecture that the tensors fit. */
static cmkd_status find_arch(const cmkd_weights *weights, const char *prefix, const char **arch, cmkd_error *err) {
  const char *fits[CMKD_NET_FITS + 1];
  int count = cmkd_net_fits(weights, fits);
  if (count > 1)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: fits `%s` and `%s` alike; say which with --%sarch", weights->path,
                     fits[0], fits[1], prefix);
  if (!count)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: fits no known architecture; `cmkd-train nets` lists them",
                     weights->path);
  *arch = fits[0];
  return CMKD_OK;
}

static cmkd_status no_arch(const cmkd_weights *weights, const char *prefix, cmkd_error *err) {
  const char *fits[CMKD_NET_FITS + 1];
  if (cmkd_net_fits(weights, fits) == 1)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: does not say its architecture; its tensors fit `%s`: use --%sarch %s",
                     weights->path, fits[0], prefix, fits[0]);
  return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: does not say its architecture; name it with --%sarch", weights->path,
                   prefix);
}

static cmkd_status read_arch(const cmkd_weights *weights, const char *arch, const char *prefix, cmkd_model_spec *out,
                             cmkd_error *err) {
  if (arch && !strcmp(arch, "auto"))
    CMKD_TRY(find_arch(weights, prefix, &arch, err));
  else if (!arch)
    arch = cmkd_weights_meta(weights, "arch");
  if (!arch) return no_arch(weights, prefix, err);
  snprintf(out->arch, sizeof out->arch, "%s", arch);
  return CMKD_OK;
}

/* "0.5,0.4,0.3" -> count numbers. */
static int parse_numbers(const char *text, int count, float *out) {
  for (int i = 0; i < count; i++) {
    char *end;
    float value = strtof(text, &end);
    if (end == text || !isfinite(value) || *end != (i + 1 < count ? ',' : 0)) return 0;
    out[i] = value;
    text = end + 1;
  }
  return 1;
}

static cmkd_status read_numbers(const cmkd_weights *weights, const char *key, const float *given, int channels,
                                const char *prefix, float out[3], cmkd_error *err) {
  const char *text = cmkd_weights_meta(weights, key);
  const char *values = channels == 1 ? "GREY" : "R,G,B";
  if (given)
    memcpy(out, given, (size_t)channels * sizeof *out);
  else if (!text)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: does not say its normalisation; give --%smean %s and --%sstd %s",
                     weights->path, prefix, values, prefix, values);
  else if (!parse_numbers(text, channels, out))
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: metadata `%s` is `%.60s`, not %d numbers with commas; give --%s%s %s",
                     weights->path, key, text, channels, prefix, key, values);
  return CMKD_OK;
}

cmkd_status cmkd_model_spec_read_as(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                    const char *prefix, cmkd_model_spec *out, cmkd_error *err) {
  *out = (cmkd_model_spec){0};
  CMKD_TRY(read_arch(weights, arch, prefix, out, err));
  cmkd_graph *graph = NULL;
  int side = cmkd_net_side(out->arch) ? cmkd_net_side(out->arch) : 32;
  cmkd_net_shape shape = {side, side, 3, 10};
  CMKD_TRY(cmkd_net_build(out->arch, shape, &graph, err));
  int good = cmkd_net_read_shape(graph, weights, &shape);
  cmkd_status status = CMKD_OK;
  if (!good) { /* the list of what is missing is worth more than "no classifier" */
    cmkd_params params;
    status = cmkd_params_create(graph, &params, err);
    if (status == CMKD_OK) status = cmkd_params_load(graph, weights, &params, err);
    cmkd_params_free(&params);
    if (status == CMKD_OK)
      status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: has no classifier for `%s`", weights->path, out->arch);
  }
  cmkd_graph_free(graph);
  if (status != CMKD_OK) return status;
  out->classes = shape.classes;
  out->channels = shape.channels;
  CMKD_TRY(read_numbers(weights, "mean", mean, out->channels, prefix, out->mean, err));
  CMKD_TRY(read_numbers(weights, "std", std, out->channels, prefix, out->std, err));
  for (int c = 0; c < out->channels; c++)
    if (!isfinite(out->mean[c]) || !(out->std[c] > 0) || !isfinite(out->std[c]))
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "%s: normalisation by mean %g, std %g is not possible; give --mean and --std", weights->path,
                       out->mean[c], out->std[c]);
  return CMKD_OK;
}

cmkd_status cmkd_model_spec_read(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                 cmkd_model_spec *out, cmkd_error *err) {
  return cmkd_model_spec_read_as(weights, arch, mean, std, "", out, err);
}
