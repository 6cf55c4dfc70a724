/* libhdf5 with the core driver and no backing store: a full disk is then our own write() failing. What version 1.10
 * leaves behind (a stale superblock checksum, times of the root group) is mended here. */
#include "formats/cache/writer/hdf5.h"
#include <hdf5.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "formats/cache/chunk.h"
#include "formats/cache/hash.h"

#define ZSTD_FILTER ((H5Z_filter_t)32015)
/* Stored in every file: changing it changes all hashes. */
#define FILTER_NAME "Zstandard compression: http://www.zstd.net"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the one of the process: libhdf5 is not thread-safe */

/* Chunks arrive compressed, so the registered filter is never run. */
static size_t no_filter(unsigned flags, size_t values, const unsigned value[], size_t size, size_t *capacity,
                        void **buffer) {
  (void)flags;
  (void)values;
  (void)value;
  (void)size;
  (void)capacity;
  (void)buffer;
  return 0;
}
static const H5Z_class2_t filter_class = {.version = H5Z_CLASS_T_VERS,
                                          .id = ZSTD_FILTER,
                                          .encoder_present = 1,
                                          .decoder_present = 1,
                                          .name = FILTER_NAME,
                                          .filter = no_filter};

/* libhdf5 builds its file in the memory of a cmkd_file_image, which stays when the file is closed and serves the next
 * one: no copy, no fresh pages. It comes as the callbacks' user data, which libhdf5 wants to copy and free, too. */
static void *image_resize(void *old, size_t size, H5FD_file_image_op_t op, void *user) {
  cmkd_file_image *out = user;
  (void)old;
  (void)op;
  if (size <= out->capacity) return out->bytes;
  size_t capacity = size + size / 4;
  uint8_t *bytes = realloc(out->bytes, capacity);
  if (!bytes) return NULL;
  out->bytes = bytes;
  out->capacity = capacity;
  return bytes;
}
static void *image_take(size_t size, H5FD_file_image_op_t op, void *user) { return image_resize(NULL, size, op, user); }
static void *image_copy(void *to, const void *from, size_t size, H5FD_file_image_op_t op, void *user) {
  (void)op;
  (void)user;
  return memcpy(to, from, size);
}
static herr_t image_keep(void *bytes, H5FD_file_image_op_t op, void *user) {
  (void)bytes;
  (void)op;
  (void)user;
  return 0;
}
static void *user_copy(void *user) { return user; }
static herr_t user_keep(void *user) {
  (void)user;
  return 0;
}

void cmkd_file_image_free(cmkd_file_image *image) {
  free(image->bytes);
  *image = (cmkd_file_image){NULL, 0, 0};
}

/* An HDF5 file that is being built in memory. A failure sticks: what comes after the first one is skipped, and closing
 * still works. */
typedef struct h5_builder {
  hid_t file;
  cmkd_file_image *out;
  int failed;
} h5_builder;
static hid_t keep(h5_builder *h5, hid_t id) {
  if (id < 0) h5->failed = 1;
  return id;
}
static void need(h5_builder *h5, herr_t status) {
  if (status < 0) h5->failed = 1;
}

static void builder_open(h5_builder *h5, size_t increment) {
  hid_t access = keep(h5, H5Pcreate(H5P_FILE_ACCESS)), create = keep(h5, H5Pcreate(H5P_FILE_CREATE));
  H5FD_file_image_callbacks_t callbacks = {image_take, image_copy, image_resize, image_keep,
                                           user_copy,  user_keep,  h5->out};
  need(h5, H5Pset_fapl_core(access, increment, 0));
  need(h5, H5Pset_file_image_callbacks(access, &callbacks));
  need(h5, H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110));
  need(h5, H5Pset_obj_track_times(create, 0));
  need(h5, H5Pset_attr_phase_change(create, 64, 0)); /* attributes stay in the root's header */
  h5->file = h5->failed ? -1 : keep(h5, H5Fcreate("cmkd-cache-image", H5F_ACC_TRUNC, create, access));
  H5Pclose(create);
  H5Pclose(access);
}

static void builder_close(h5_builder *h5) {
  ssize_t bytes = -1;
  uint8_t superblock[48] = {0};
  if (h5->file >= 0) {
    if (!h5->failed) need(h5, H5Fflush(h5->file, H5F_SCOPE_GLOBAL));
    if (!h5->failed) bytes = H5Fget_file_image(h5->file, NULL, 0);
    /* as it is before closing, which gives back unused space: a file end before the image's */
    if (bytes >= 48) memcpy(superblock, h5->out->bytes, sizeof superblock);
    need(h5, H5Fclose(h5->file));
  }
  if (h5->failed || bytes < 48 || (size_t)bytes > h5->out->capacity) {
    h5->failed = 1;
    return;
  }
  /* superblock 3: byte 11 says "open for writing", and the checksum in bytes 44-47 is that of another moment */
  superblock[11] = 0;
  cmkd_store_little(superblock + 44, 4, cmkd_lookup3(superblock, 44));
  memcpy(h5->out->bytes, superblock, sizeof superblock);
  h5->out->size = (size_t)bytes;
}

static void attribute(h5_builder *h5, const char *name, hid_t memory, hid_t stored, hsize_t count, const void *value) {
  if (h5->failed) return;
  hid_t space = keep(h5, count ? H5Screate_simple(1, &count, NULL) : H5Screate(H5S_SCALAR));
  hid_t attr = keep(h5, H5Acreate2(h5->file, name, stored, space, H5P_DEFAULT, H5P_DEFAULT));
  need(h5, H5Awrite(attr, memory, value));
  H5Aclose(attr);
  H5Sclose(space);
}

static hid_t text_type(size_t size) {
  hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, size);
  H5Tset_cset(type, H5T_CSET_UTF8);
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  return type;
}
static void text(h5_builder *h5, const char *name, const char *value) {
  hid_t type = text_type(value[0] ? strlen(value) : 1);
  attribute(h5, name, type, type, 0, value);
  H5Tclose(type);
}
static void number(h5_builder *h5, const char *name, int64_t value) {
  attribute(h5, name, H5T_NATIVE_INT64, H5T_STD_I64LE, 0, &value);
}

static void identity(h5_builder *h5, const cmkd_cache_config *config, const char *format) {
  const cmkd_cache_identity *id = &config->identity;
  text(h5, "format", format);
  number(h5, "schema", 1);
  text(h5, "codec", id->codec);
  number(h5, "samples", (int64_t)config->samples);
  number(h5, "views", config->views);
  number(h5, "classes", config->classes);
  text(h5, "teacher_sha256", id->teacher_sha256);
  text(h5, "teacher_arch", id->teacher_arch);
  text(h5, "teacher_name", id->teacher_name);
  if (id->channels) attribute(h5, "mean", H5T_NATIVE_FLOAT, H5T_IEEE_F32LE, (hsize_t)id->channels, id->mean);
  if (id->channels) attribute(h5, "std", H5T_NATIVE_FLOAT, H5T_IEEE_F32LE, (hsize_t)id->channels, id->std);
  text(h5, "precision", id->precision);
  if (id->precision_error > 0)
    attribute(h5, "precision_error", H5T_NATIVE_DOUBLE, H5T_IEEE_F64LE, 0, &id->precision_error);
  number(h5, "teacher_batch", id->teacher_batch);
  text(h5, "dataset", id->dataset);
  text(h5, "split", id->split);
  text(h5, "fingerprint", id->fingerprint);
  number(h5, "dataset_n", id->dataset_n);
  text(h5, "augment", cmkd_policy_name(id->policy));
  text(h5, "rng", id->rng_version);
  attribute(h5, "cache_seed", H5T_NATIVE_UINT64, H5T_STD_U64LE, 0, &id->cache_seed);
  number(h5, "all_variants", id->all_variants);
  number(h5, "clean_view", id->clean_view);
  text(h5, "tool_version", id->tool_version);
}

static hid_t half_type(void) {
  hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(type, 15, 10, 5, 0, 10);
  H5Tset_size(type, 2);
  H5Tset_ebias(type, 15);
  return type;
}

/* A contiguous array, allocated at once so that its place is known. */
static void flat(h5_builder *h5, const char *name, hid_t memory, hid_t stored, hsize_t count, const void *data,
                 cmkd_extent *extent) {
  if (h5->failed) return;
  hid_t create = keep(h5, H5Pcreate(H5P_DATASET_CREATE)), space = keep(h5, H5Screate_simple(1, &count, NULL));
  need(h5, H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY));
  need(h5, H5Pset_fill_time(create, H5D_FILL_TIME_NEVER));
  need(h5, H5Pset_obj_track_times(create, 0));
  hid_t set = keep(h5, H5Dcreate2(h5->file, name, stored, space, H5P_DEFAULT, create, H5P_DEFAULT));
  if (!h5->failed) need(h5, H5Dwrite(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data));
  if (!h5->failed && extent) {
    extent->offset = (uint64_t)H5Dget_offset(set);
    extent->size = count * H5Tget_size(stored);
    extent->hash = cmkd_xxh64(data, extent->size);
    if (H5Dget_offset(set) == HADDR_UNDEF) h5->failed = 1;
  }
  if (set >= 0) H5Dclose(set);
  H5Sclose(space);
  H5Pclose(create);
}

static void class_names(h5_builder *h5, const cmkd_cache_config *config) {
  if (!config->class_names || h5->failed) return;
  size_t width = 1;
  for (uint32_t c = 0; c < config->classes; c++)
    if (strlen(config->class_names[c]) > width) width = strlen(config->class_names[c]);
  char *table = width < 1024 ? calloc(config->classes, width) : NULL;
  if (!table) {
    h5->failed = 1;
    return;
  }
  for (uint32_t c = 0; c < config->classes; c++)
    memcpy(table + c * width, config->class_names[c], strlen(config->class_names[c]));
  hid_t type = text_type(width);
  flat(h5, "class_names", type, type, config->classes, table, NULL);
  H5Tclose(type);
  free(table);
}

/* A chunked array of (n, views) + shape, whose chunks are given as stored bytes, view after view. */
enum { MAX_RANK = 2 + CMKD_CACHE_ARRAY_DIMS };
typedef struct chunked {
  const char *name;
  hid_t type;
  int rank, filters, item; /* filters: 1, those of compressed chunks; item: bytes */
  hsize_t dims[MAX_RANK], chunk[MAX_RANK];
} chunked;

static void chunks(h5_builder *h5, const chunked *c, const uint8_t *const *data, const size_t *sizes,
                   cmkd_extent *extents) {
  if (h5->failed) return;
  hid_t create = keep(h5, H5Pcreate(H5P_DATASET_CREATE)), space = keep(h5, H5Screate_simple(c->rank, c->dims, NULL));
  const unsigned level = CMKD_CHUNK_LEVEL;
  need(h5, H5Pset_chunk(create, c->rank, c->chunk));
  need(h5, H5Pset_fill_time(create, H5D_FILL_TIME_NEVER));
  need(h5, H5Pset_obj_track_times(create, 0));
  if (c->filters) {
    if (c->item > 1) need(h5, H5Pset_shuffle(create));
    need(h5, H5Pset_filter(create, ZSTD_FILTER, H5Z_FLAG_MANDATORY, 1, &level));
    need(h5, H5Pset_fletcher32(create));
  }
  hid_t set =
      h5->failed ? -1 : keep(h5, H5Dcreate2(h5->file, c->name, c->type, space, H5P_DEFAULT, create, H5P_DEFAULT));
  size_t per_view = (size_t)((c->dims[0] + c->chunk[0] - 1) / c->chunk[0]);
  for (int pass = 0; pass < 2; pass++) { /* places are asked for when all are written */
    for (size_t i = 0; i < per_view * c->dims[1] && !h5->failed; i++) {
      hsize_t at[MAX_RANK] = {i % per_view * c->chunk[0], i / per_view}, stored = 0;
      unsigned mask = 0;
      haddr_t address = HADDR_UNDEF;
      if (!pass) {
        need(h5, H5Dwrite_chunk(set, H5P_DEFAULT, 0, at, sizes[i], data[i]));
        continue;
      }
      need(h5, H5Dget_chunk_info_by_coord(set, at, &mask, &address, &stored));
      if (address == HADDR_UNDEF || stored != sizes[i] || mask) h5->failed = 1;
      extents[i] = (cmkd_extent){address, stored, cmkd_xxh64(data[i], sizes[i])};
    }
  }
  if (set >= 0) H5Dclose(set);
  H5Sclose(space);
  H5Pclose(create);
}

/* A small (n, views) array: one unfiltered chunk a view, so that a reader of one view reads one piece. */
static void columns(h5_builder *h5, const char *name, hid_t type, const void *data, size_t item, hsize_t n,
                    hsize_t views, cmkd_extent *extents) {
  chunked c = {.name = name, .type = type, .rank = 2, .dims = {n, views}, .chunk = {n, 1}};
  const uint8_t **pointers = malloc(views * sizeof *pointers);
  size_t *sizes = malloc(views * sizeof *sizes);
  if (!pointers || !sizes) h5->failed = 1;
  for (hsize_t v = 0; v < views && !h5->failed; v++) {
    pointers[v] = (const uint8_t *)data + v * n * item;
    sizes[v] = n * item;
  }
  chunks(h5, &c, pointers, sizes, extents);
  free(pointers);
  free(sizes);
}

/* libhdf5 prints its errors unless told not to; the caller's setting comes back. */
typedef struct quiet {
  H5E_auto2_t function;
  void *data;
} quiet;
static void enter(quiet *q, cmkd_file_image *out) {
  pthread_mutex_lock(&lock);
  out->size = 0;
  H5Eget_auto2(H5E_DEFAULT, &q->function, &q->data);
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}
static void leave(const quiet *q) {
  H5Eset_auto2(H5E_DEFAULT, q->function, q->data);
  pthread_mutex_unlock(&lock);
}

static void layout(h5_builder *h5, const cmkd_array_layout *l, const cmkd_chunk_table *table, hsize_t n, hsize_t views,
                   hid_t half, const uint8_t *const *data, const size_t *sizes) {
  const hid_t types[] = {[1] = H5T_STD_U8LE, [2] = half, [4] = H5T_IEEE_F32LE};
  chunked c = {.name = l->array.name,
               .type = types[l->codec->item],
               .rank = 2 + l->array.dims,
               .filters = 1,
               .item = l->codec->item,
               .dims = {n, views},
               .chunk = {table->chunk_samples, 1}};
  for (int d = 0; d < l->array.dims; d++)
    c.dims[2 + d] = c.chunk[2 + d] = l->array.shape[d];
  chunks(h5, &c, data, sizes, table->extents);
}

cmkd_status cmkd_hdf5_shard(const cmkd_cache_config *config, cmkd_shard_meta *meta, const cmkd_shard_data *data,
                            cmkd_file_image *out, cmkd_error *err) {
  const int row_numbers = config->layouts[0].codec->row_numbers;
  quiet q;
  h5_builder h5 = {.file = -1, .out = out};
  enter(&q, out);
  need(&h5, H5Zregister(&filter_class));
  builder_open(&h5, 4u << 20);
  identity(&h5, config, "cmkd-shard");
  number(&h5, "shard", meta->index);
  number(&h5, "shards", config->shards);
  number(&h5, "first_sample", (int64_t)meta->first);
  hid_t half = half_type();
  hsize_t n = meta->samples, views = config->views;
  layout(&h5, config->layouts, meta->tables, n, views, half, data->chunks, data->sizes);
  columns(&h5, "seeds", H5T_STD_U64LE, data->seeds, 8, n, views, meta->seeds);
  if (row_numbers) columns(&h5, "row_max", half, data->row_max, 2, n, views, meta->row_max);
  if (row_numbers) columns(&h5, "row_range", half, data->row_range, 2, n, views, meta->row_range);
  flat(&h5, "sample_id", H5T_NATIVE_UINT64, H5T_STD_U64LE, n, data->ids, &meta->sample_id);
  flat(&h5, "label", H5T_NATIVE_INT32, H5T_STD_I32LE, n, data->labels, &meta->label);
  class_names(&h5, config);
  size_t at = views * meta->tables[0].chunks_per_view;
  for (uint32_t a = 1; a < config->layout_count; at += views * meta->tables[a++].chunks_per_view)
    layout(&h5, config->layouts + a, meta->tables + a, n, views, half, data->chunks + at, data->sizes + at);
  H5Tclose(half);
  builder_close(&h5);
  leave(&q);
  return h5.failed ? cmkd_fail(err, CMKD_ERR_MEMORY, "libhdf5 could not build shard %u in memory (out of memory?)",
                               meta->index)
                   : CMKD_OK;
}

cmkd_status cmkd_hdf5_master(const cmkd_master_meta *meta, cmkd_file_image *out, cmkd_error *err) {
  quiet q;
  h5_builder h5 = {.file = -1, .out = out};
  enter(&q, out);
  builder_open(&h5, 1u << 16);
  identity(&h5, &meta->config, "cmkd-cache");
  number(&h5, "shards", meta->config.shards);
  number(&h5, "shard_rows", meta->config.shard_samples);
  text(&h5, "cache_sha256", meta->content_sha256);
  class_names(&h5, &meta->config);
  for (uint32_t k = 0; k < meta->config.shards && !h5.failed; k++) {
    char name[16], target[320];
    snprintf(name, sizeof name, "shard-%05u", k % 100000);
    snprintf(target, sizeof target, "%s/%s", meta->folder, meta->shards[k].file);
    need(&h5, H5Lcreate_external(target, "/", h5.file, name, H5P_DEFAULT, H5P_DEFAULT));
  }
  builder_close(&h5);
  leave(&q);
  return h5.failed
             ? cmkd_fail(err, CMKD_ERR_MEMORY, "libhdf5 could not build the master file in memory (out of memory?)")
             : CMKD_OK;
}
