/* All architectures by name. A member of a family is a line in NETS, a new family a file and a name in families.h. */
#include "nets/registry.h"
#include "nets/families.h"
#include <string.h>
#include "base/text.h"

/* name, family, image side that it is published for, the family's sizes */
#define NETS(X) \
  X("resnet8", resnet_cifar, 32, 8, 16, 16) \
  X("resnet14", resnet_cifar, 32, 14, 16, 16) \
  X("resnet20", resnet_cifar, 32, 20, 16, 16) \
  X("resnet32", resnet_cifar, 32, 32, 16, 16) \
  X("resnet44", resnet_cifar, 32, 44, 16, 16) \
  X("resnet56", resnet_cifar, 32, 56, 16, 16) \
  X("resnet110", resnet_cifar, 32, 110, 16, 16) \
  X("resnet8x4", resnet_cifar, 32, 8, 32, 64) \
  X("resnet32x4", resnet_cifar, 32, 32, 32, 64) \
  X("resnet8_pad", resnet_cifar, 32, 8, 16, 16, 1) \
  X("resnet14_pad", resnet_cifar, 32, 14, 16, 16, 1) \
  X("resnet20_pad", resnet_cifar, 32, 20, 16, 16, 1) \
  X("resnet32_pad", resnet_cifar, 32, 32, 16, 16, 1) \
  X("resnet44_pad", resnet_cifar, 32, 44, 16, 16, 1) \
  X("resnet56_pad", resnet_cifar, 32, 56, 16, 16, 1) \
  X("resnet110_pad", resnet_cifar, 32, 110, 16, 16, 1) \
  X("resnet18_cifar", resnet_imagenet, 32, 2, 2, 2, 2, 0, 1) \
  X("resnet34_cifar", resnet_imagenet, 32, 3, 4, 6, 3, 0, 1) \
  X("resnet50_cifar", resnet_imagenet, 32, 3, 4, 6, 3, 1, 1) \
  X("wrn-16-1", wrn, 32, 16, 1) \
  X("wrn-16-2", wrn, 32, 16, 2) \
  X("wrn-40-1", wrn, 32, 40, 1) \
  X("wrn-40-2", wrn, 32, 40, 2) \
  X("wrn-28-10", wrn, 32, 28, 10) \
  X("vgg8", vgg, 32, 1, 1, 1, 1, 1) \
  X("vgg11", vgg, 32, 1, 1, 2, 2, 2) \
  X("vgg13", vgg, 32, 2, 2, 2, 2, 2) \
  X("vgg16", vgg, 32, 2, 2, 3, 3, 3) \
  X("vgg19", vgg, 32, 2, 2, 4, 4, 4) \
  X("mobilenetv2_cifar", mobilenetv2_cifar, 32, 0) \
  X("shufflenetv1_cifar", shufflenetv1_cifar, 32, 0) \
  X("shufflenetv2_cifar", shufflenetv2_cifar, 32, 0) \
  X("resnet18", resnet_imagenet, 224, 2, 2, 2, 2, 0) \
  X("resnet34", resnet_imagenet, 224, 3, 4, 6, 3, 0) \
  X("resnet50", resnet_imagenet, 224, 3, 4, 6, 3, 1) \
  X("resnet101", resnet_imagenet, 224, 3, 4, 23, 3, 1) \
  X("resnet152", resnet_imagenet, 224, 3, 8, 36, 3, 1) \
  X("mobilenetv1", mobilenetv1, 224, 0) \
  X("mobilenetv2", mobilenetv2, 224, 0) \
  X("vgg16_bn", vgg_imagenet, 224, 2, 2, 3, 3, 3)

typedef struct entry {
  const char *name;
  cmkd_net_family *build;
  int side, size[6];
} entry;
#define ENTRY(name, family, side, ...) {name, cmkd_net_##family, side, {__VA_ARGS__}},
#define NAME(name, ...) name,
static const entry entries[] = {NETS(ENTRY)};
static const char *const names[] = {NETS(NAME) NULL};
#define ENTRIES ((int)(sizeof entries / sizeof *entries))

/* What other toolkits call them. */
static const char *const aliases[][2] = {
    {"wrn_16_1", "wrn-16-1"},
    {"wrn_16_2", "wrn-16-2"},
    {"wrn_40_1", "wrn-40-1"},
    {"wrn_40_2", "wrn-40-2"},
    {"wrn_28_10", "wrn-28-10"},
    {"vgg8_bn", "vgg8"},
    {"vgg11_bn", "vgg11"},
    {"vgg13_bn", "vgg13"},
    {"vgg19_bn", "vgg19"},
    {"MobileNetV2", "mobilenetv2_cifar"},
    {"mobile_half", "mobilenetv2_cifar"},
    {"ShuffleV1", "shufflenetv1_cifar"},
    {"ShuffleV2", "shufflenetv2_cifar"},
    {"ResNet18", "resnet18_cifar"},
    {"ResNet34", "resnet34_cifar"},
    {"ResNet50", "resnet50_cifar"},
    {"mobilenet_v2", "mobilenetv2"},
    {"MobileNetV1", "mobilenetv1"},
};

const char *const *cmkd_net_names(void) { return names; }

static const entry *find(const char *arch) {
  for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
    if (!strcmp(aliases[i][0], arch)) arch = aliases[i][1];
  for (int i = 0; i < ENTRIES; i++)
    if (!strcmp(entries[i].name, arch)) return &entries[i];
  return NULL;
}

int cmkd_net_side(const char *arch) {
  const entry *e = find(arch);
  return e ? e->side : 0;
}

cmkd_status cmkd_net_build(const char *arch, cmkd_net_shape shape, cmkd_graph **out, cmkd_error *err) {
  *out = NULL;
  const entry *e = find(arch);
  if (!e) {
    const char *nearest = cmkd_nearest(arch, names);
    if (nearest)
      return cmkd_fail(err, CMKD_ERR_USAGE,
                       "unknown architecture `%.60s`; did you mean `%s`? (`cmkd-train nets` lists them all)", arch,
                       nearest);
    return cmkd_fail(err, CMKD_ERR_USAGE, "unknown architecture `%.60s`; `cmkd-train nets` lists them all", arch);
  }
  cmkd_net_builder b;
  CMKD_TRY(cmkd_net_start(&b, e->name, shape, err));
  e->build(&b, 0, e->size);
  return cmkd_net_finish(&b, out);
}
