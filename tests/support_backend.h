/* What tests of a backend share: small networks that use every operation, made-up images, a backend opened on them, and
 * comparisons. */
#ifndef CMKD_TESTS_SUPPORT_BACKEND_H
#define CMKD_TESTS_SUPPORT_BACKEND_H
#include "kernels/backend.h"
#include "nets/net.h"
#include "tests/support.h"

enum { IMAGES = 24, CLASSES = 11 };
typedef struct data {
  int h, w, c;
  uint8_t *pixels;
  int32_t labels[IMAGES];
  uint32_t rows[64];
  uint64_t seeds[64];
  float *teacher;
} data;
data make_data(int h, int w, int c);
void free_data(data *d);

typedef cmkd_graph *network(void);
network net_resnet8, net_resnet14_grey, net_resnet8_pad, net_resnet8x4;
network net_mixed;   /* pools, biases, relu6, all channel moves, a kernel larger than 3, a classifier over pixels */
network net_grouped; /* grouped and depthwise convolutions at both strides, channel counts that fit no vector */
network net_preact;  /* pre-activation: a norm reads a sum that others read too; its output goes two ways */

typedef struct side {
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
} side;
cmkd_loss *loss_of(const char *text);
/* What environment variables say, with these threads and this precision. */
cmkd_backend_options options_of(int threads, const char *precision);
cmkd_image_set set_of(const data *d);
/* What the tests train with; loss NULL: inference. */
cmkd_model_config config_of(const cmkd_graph *graph, const cmkd_loss *loss, int batch, int nesterov);
side open_config(const cmkd_backend_table *table, int threads, const char *precision, const data *d,
                 const cmkd_model_config *config);
/* loss NULL: inference. precision NULL: the backend's own. */
side open_side(const cmkd_backend_table *table, int threads, const char *precision, const cmkd_graph *graph,
               const data *d, const cmkd_loss *loss, int batch, int nesterov);
void close_side(side *s);
cmkd_params start_params(const cmkd_graph *graph);
cmkd_step step_of(const data *d, int first, int count, double lr);

/* Inference alone on a partial batch and a smaller one: logits and features within `limit` of the reference, which does
 * not fold. */
void infers_as_the_reference(const cmkd_backend_table *table, int threads, const char *precision, network *make,
                             double limit);
/* A row's logits are the same bits wherever it sits, whoever sits beside it, and for every number of threads up to
 * `threads`. */
void rows_stand_alone(const cmkd_backend_table *table, int threads);

/* |a - b| / (|b| + floor) over a whole parameter; `floor` keeps numbers that are all but zero from counting */
double distance(const float *a, const float *b, int64_t n, double floor);
void compare_params(const cmkd_graph *graph, const cmkd_params *a, const cmkd_params *b, double floor, double limit,
                    const char *what);
void close_to(double a, double b, double limit, const char *what, const char *arch);
#endif
