/* docs/pytorch/cmkd_dataset.py, an independent reading of the format and of the replay rule, against ours: pixels and
 * logits bit for bit. */
#include "tests/support.h"
#include "base/file.h"
#include "cmkd/dataset.h"
#include "kernels/augment.h"
#include "tests/support_cache.h"

enum { SAMPLES = 90, VIEWS = 4, CLASSES = 10, SIDE = 28, IMAGE = SIDE * SIDE };

static cmkd_error err;

/* What the Dataset must yield: per sample and view the moved pixels, then the logits, as one file. */
static void write_expected(const char *path, const char *cache_path, const cmkd_dataset *data) {
  cmkd_cache *cache;
  assert_ok(cmkd_cache_open(cache_path, &cache, &err));
  const size_t row = IMAGE + CLASSES * sizeof(float) + 8;
  uint8_t *out = malloc(VIEWS * SAMPLES * row);
  for (uint32_t v = 0; v < VIEWS; v++) {
    uint64_t seeds[SAMPLES];
    float logits[SAMPLES * CLASSES];
    assert_ok(cmkd_cache_seeds(cache, v, seeds, &err));
    assert_ok(cmkd_cache_read(cache, v, 0, SAMPLES, logits, &err));
    for (uint32_t i = 0; i < SAMPLES; i++) {
      uint8_t *at = out + (v * SAMPLES + i) * row;
      const cmkd_gather one = {
          cmkd_cache_get_info(cache)->identity.policy, data->pixels, &i, &seeds[i], 1, SIDE, SIDE, 1};
      cmkd_augment_bytes_cpu(&one, at);
      memcpy(at + IMAGE, logits + i * CLASSES, CLASSES * sizeof(float));
      memcpy(at + IMAGE + CLASSES * sizeof(float), &seeds[i], 8);
    }
  }
  cmkd_piece piece = {out, VIEWS * SAMPLES * row};
  assert_ok(cmkd_file_write(path, &piece, 1, &err));
  free(out);
  cmkd_cache_close(cache);
}

static void yields_our_bytes(void **state) {
  (void)state;
  const char *output, *python = python_with("h5py, numpy");
  if (!python) skip();
  static const char *const codecs[] = {"f16", "f32", "u8sqrt"};
  for (int k = 0; k < 3; k++) {
    synthetic s = {.samples = SAMPLES,
                   .views = VIEWS,
                   .classes = CLASSES,
                   .shard_samples = 40,
                   .chunk_samples = 16,
                   .codec = codecs[k],
                   .seed = 5};
    const char *dir = scratch_dir();
    char cache[1300], expected[1300], spec[1300];
    snprintf(cache, sizeof cache, "%s/teacher.h5", dir);
    snprintf(expected, sizeof expected, "%s/expected", dir);
    snprintf(spec, sizeof spec, "fashion-mnist:%s", dir);
    synthetic_images(&s, dir, SIDE);
    cmkd_cache_spec written;
    synthetic_spec(&s, &written);
    strcpy(written.identity.dataset, "fashion-mnist");
    strcpy(written.identity.split, "train");
    written.identity.policy = CMKD_AUGMENT_CROP_FLIP;
    cmkd_cache_writer *writer;
    assert_ok(cmkd_cache_writer_open(cache, &written, &writer, &err));
    for (uint64_t i = 0; i < SAMPLES; i++) {
      int32_t label = synthetic_label(&s, i);
      uint64_t seeds[VIEWS];
      float rows[VIEWS * CLASSES];
      cmkd_view_seeds(5, i, VIEWS, CMKD_AUGMENT_CROP_FLIP, 0, seeds);
      for (uint32_t v = 0; v < VIEWS; v++)
        synthetic_row(&s, i, v, rows + v * CLASSES);
      assert_ok(cmkd_cache_writer_add(writer, 1, &i, &label, seeds, rows, &err));
    }
    assert_ok(cmkd_cache_writer_finish(writer, &err));
    cmkd_cache_writer_close(writer);
    cmkd_dataset *data;
    assert_ok(cmkd_dataset_open(spec, "train", NULL, &data, &err));
    write_expected(expected, cache, data);
    cmkd_dataset_close(data);
    const char *script = "import sys, numpy as np\n"
                         "sys.path.insert(0, 'docs/pytorch')\n"
                         "from cmkd_dataset import CachedDataset\n"
                         "data = CachedDataset(sys.argv[1], sys.argv[2])\n"
                         "out = b''\n"
                         "for v in range(data.views):\n"
                         "  data.set_view(v)\n"
                         "  for i in range(len(data)):\n"
                         "    pixels, label, logits, seed = data[i]\n"
                         "    out += pixels.tobytes() + logits.tobytes() + seed.tobytes()\n"
                         "assert out == open(sys.argv[3], 'rb').read(), 'bytes differ'\n"
                         "try: from torch.utils.data import DataLoader\n"
                         "except ImportError: sys.exit()\n"
                         "batch = next(iter(DataLoader(data, batch_size=16)))\n"
                         "assert batch[0].shape == (16, 28, 28, 1) and batch[2].shape == (16, 10) and "
                         "(batch[3].numpy().view(np.uint64) == data.seeds[:16]).all()\n";
    if (run_command(&output, "HDF5_PLUGIN_PATH='%s' '%s' -B -c \"%s\" '%s' '%s' '%s'", filter_folder(), python, script,
                    cache, dir, expected) != 0)
      fail_msg("%s: %s", codecs[k], output);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(yields_our_bytes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
