/* Architectures by name, their initial weights, and weight files bound to them: all that other folders use of nets/,
 * but for the teacher and the ONNX export. Each header here includes only those above it. */
#ifndef CMKD_NETS_NET_H
#define CMKD_NETS_NET_H
#include "nets/registry.h"
#include "nets/fits.h"
#include "nets/params.h"
#include "nets/model_spec.h"
#endif
