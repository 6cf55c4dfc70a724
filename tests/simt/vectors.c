/* check_vectors' way to the CUDA losses: emulated, or with -DON_DEVICE on a GPU. Host buffers in and out. */
#include "tests/vectors.h"
#include "tests/simt/open.h"

static const cmkd_cuda_functions *table;

static int ready(const char **why) {
  table = open_functions(why);
  return table != NULL;
}

static cmkd_status upload(void **held, int *count, const void *host, size_t bytes, void **device, cmkd_error *err) {
  *device = NULL;
  if (!bytes) return CMKD_OK;
  CMKD_TRY(table->alloc(device, bytes, err));
  held[(*count)++] = *device;
  return host ? table->put(*device, host, bytes, err) : table->fill(*device, 0xFF, bytes, err);
}

static cmkd_status eval(const cmkd_loss *loss, const cmkd_loss_batch *b, cmkd_loss_result *result, cmkd_error *err) {
  void *held[8], *student, *teacher, *labels, *grad, *scratch, *out;
  int count = 0;
  const size_t n = (size_t)(b->batch * b->classes), bytes = table->loss_scratch(loss, b->batch, b->classes);
  if (!bytes) return cmkd_fail(err, CMKD_ERR_VALUE, "the shape is out of range");
  cmkd_status status = upload(held, &count, b->student, n * 4, &student, err);
  if (status == CMKD_OK)
    status =
        upload(held, &count, b->teacher, b->teacher ? n * (b->teacher_dtype == CMKD_F32 ? 4 : 2) : 0, &teacher, err);
  if (status == CMKD_OK) status = upload(held, &count, b->labels, (size_t)b->batch * 4, &labels, err);
  if (status == CMKD_OK) status = upload(held, &count, NULL, n * 4, &grad, err);
  if (status == CMKD_OK) status = upload(held, &count, NULL, bytes, &scratch, err);
  if (status == CMKD_OK) status = upload(held, &count, NULL, sizeof *result, &out, err);
  if (status == CMKD_OK) status = table->loss_init(scratch, NULL, err);
  if (status == CMKD_OK) {
    const cmkd_cuda_loss_batch d = {b->batch, b->classes,         student,        CMKD_F32,
                                    teacher,  b->teacher_dtype,   labels,         grad,
                                    b->epoch, b->label_smoothing, b->entropy_mean};
    status = table->loss_eval(loss, &d, scratch, out, NULL, err);
  }
  if (status == CMKD_OK) status = table->get(result, out, sizeof *result, err);
  if (status == CMKD_OK && b->grad) status = table->get(b->grad, grad, n * 4, err);
  if (status == CMKD_OK && result->bad_row >= 0)
    status = cmkd_fail(err, CMKD_ERR_VALUE, "row %lld: NaN, Inf or a label out of range", (long long)result->bad_row);
  while (count)
    table->release(held[--count]);
  return status;
}

#ifdef ON_DEVICE
const cmkd_vectors_hook cmkd_vectors_cuda = {"cuda", ready, eval};
#else
const cmkd_vectors_hook cmkd_vectors_emulated = {"emulated", ready, eval};
#endif
