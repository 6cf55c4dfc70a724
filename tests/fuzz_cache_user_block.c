/* User blocks: the first byte chooses between a whole block, the JSON of a shard and that of a master (hashes would
 * stop a fuzzer). */
#include "formats/cache/user_block.h"
#include "formats/cache/parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  cmkd_error err;
  cmkd_user_block block;
  cmkd_cache_config config;
  cmkd_shard_meta shard;
  cmkd_master_meta master;
  if (size == 0) return 0;
  int kind = data[0] % 3;
  data++;
  size--;
  if (kind == 0)
    return cmkd_user_block_parse(data, size, size, "fuzz", &block, &err) == CMKD_OK && block.json_size > size;
  if (kind == 1 &&
      cmkd_shard_json_parse((const char *)data, size, size * 16, "fuzz", &config, &shard, &err) == CMKD_OK) {
    cmkd_cache_config_free(&config);
    cmkd_shard_meta_free(&shard);
  }
  if (kind == 2 && cmkd_master_json_parse((const char *)data, size, "fuzz", &master, &err) == CMKD_OK)
    cmkd_master_meta_free(&master);
  return 0;
}
