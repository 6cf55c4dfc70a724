/* What a weight file says about its network, completed by what the user said. */
#ifndef CMKD_NETS_MODEL_SPEC_H
#define CMKD_NETS_MODEL_SPEC_H
#include "cmkd/status.h"
#include "cmkd/weights.h"

typedef struct cmkd_model_spec {
  char arch[64];
  int classes;           /* as the classifier's shape says */
  int channels;          /* of the images */
  float mean[3], std[3]; /* (channels) normalisation of pixels / 255 */
} cmkd_model_spec;
/* The user's word goes before the file's metadata. arch NULL: from the file; "auto": the one that its tensors fit.
 * mean, std (channels) NULL: from the file. What neither gives fails, and the message names the option. */
cmkd_status cmkd_model_spec_read(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                 cmkd_model_spec *out, cmkd_error *err);
/* The same; `prefix` stands before the options that messages name: "teacher-" makes --teacher-arch of --arch. */
cmkd_status cmkd_model_spec_read_as(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                    const char *prefix, cmkd_model_spec *out, cmkd_error *err);
#endif
