/* All architectures by name. A family file plus one line here adds a network. */
#include "nets/net.h"
#include "nets/builder.h"
#include <string.h>
#include "base/options.h"

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
  X("resnet110_pad", resnet_cifar, 32, 110, 16, 16, 1)

typedef struct entry { const char *name; net_family *build; int side, size[6]; } entry;
#define ENTRY(name, family, side, ...) {name, cmkd_net_##family, side, {__VA_ARGS__}},
#define NAME(name, ...) name,
static const entry entries[] = {NETS(ENTRY)};
static const char *const names[] = {NETS(NAME) NULL};
#define ENTRIES ((int)(sizeof entries / sizeof *entries))

const char *const *cmkd_net_names(void) { return names; }

static const entry *find(const char *arch) {
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
    if (nearest) return cmkd_fail(err, CMKD_ERR_USAGE, "unknown architecture `%.60s`; did you mean `%s`? (`cmkd-train nets` lists them all)", arch, nearest);
    return cmkd_fail(err, CMKD_ERR_USAGE, "unknown architecture `%.60s`; `cmkd-train nets` lists them all", arch);
  }
  net_builder b;
  CMKD_TRY(cmkd_net_start(&b, e->name, shape, err));
  e->build(&b, 0, e->size);
  return cmkd_net_finish(&b, out);
}
