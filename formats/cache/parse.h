/* JSON of user blocks to the structs of meta.h. The text is hostile: nothing is allocated that the file could not hold,
 * every number has a range, and a missing or wrong piece fails with CMKD_ERR_FORMAT and the name of the file, `path`.
 * What has an unknown key is ignored, and so is a named array of an unknown type. After a failure there is nothing to
 * free. */
#ifndef CMKD_FORMATS_CACHE_PARSE_H
#define CMKD_FORMATS_CACHE_PARSE_H
#include "formats/cache/meta.h"

/* `payload` bytes follow the user block. */
cmkd_status cmkd_shard_json_parse(const char *json, size_t size, uint64_t payload, const char *path,
                                  cmkd_cache_config *config, cmkd_shard_meta *meta, cmkd_error *err);
/* Checks the content's hash, too. */
cmkd_status cmkd_master_json_parse(const char *json, size_t size, const char *path, cmkd_master_meta *meta,
                                   cmkd_error *err);
#endif
