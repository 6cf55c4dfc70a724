/* cuDNN's plans for an H100, made without one: cuDNN 9.8 and later makes plans from a description of the device. For
 * every layer and pass of the networks that are trained here there is a deterministic one in the precision that was
 * asked for. Nothing is run. Without cuDNN all but the first test are skipped by name. */
#include "tests/support.h"
#include <dlfcn.h>
#include "kernels/cuda/conv/cudnn.c"
#include "kernels/cuda/conv/cudnn_graph.c"
#include "kernels/cuda/conv/cudnn_plan.c"
#include "nets/net.h"

static cmkd_error err;

static void assert_one_line(const char *part) {
  assert_true(err.message[0] && !strchr(err.message, '\n'));
  assert_non_null(strstr(err.message, part));
}

static void what_is_missing_is_said(void **state) {
  (void)state;
  cmkd_cudnn *lib = NULL;
#ifdef LIBRARY
  static const struct {
    const char *path, *said;
  } bad[] = {{"off", "left out"},
             {"/nowhere/libcudnn.so.9", "/nowhere/libcudnn.so.9"},
             {"libm.so.6", "libm.so.6 has no cudnn"}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_equal(cmkd_cudnn_open(bad[i].path, NULL, NULL, &lib, &err), CMKD_ERR_UNSUPPORTED);
    assert_null(lib);
    assert_one_line(bad[i].said);
    assert_true(i == 0 || strstr(err.message, "CMKD_CUDNN=PATH"));
  }
  static const char *const no_device[] = {"", "{}", "[1]", "{\"deviceVer\":900}", "nonsense"};
  for (size_t i = 0; i < sizeof no_device / sizeof *no_device; i++) {
    assert_int_equal(cmkd_cudnn_open(getenv("CMKD_CUDNN"), NULL, no_device[i], &lib, &err), CMKD_ERR_UNSUPPORTED);
    assert_null(lib);
    assert_one_line("cuDNN");
  }
#else
  assert_int_equal(cmkd_cudnn_open(NULL, NULL, NULL, &lib, &err), CMKD_ERR_UNSUPPORTED);
  assert_null(lib);
  assert_one_line("cudnn.h");
#endif
}

#ifdef LIBRARY
static const char h100[] = "{\"cudaDeviceId\":0,\"deviceName\":\"NVIDIA H100 80GB "
                           "HBM3\",\"deviceVer\":900,\"driverVer\":13000,\"totalGlobalMem\":85029158912,"
                           "\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":"
                           "65536,\"multiProcessorCount\":132,\"warpSize\":32,"
                           "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":232448,"
                           "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
                           "\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,"
                           "\"isTccDriver\":0,\"supportCoopLaunch\":1,"
                           "\"smClockRateKHz\":1980000,\"memClockRateKHz\":2619000,\"l2CacheSize\":52428800}";
static const size_t limit = (size_t)256 << 20;
static cmkd_cudnn *cudnn;

/* Descriptors are counted: every test gives back what it made. */
static int descriptors;
static __typeof__(cudnnBackendCreateDescriptor) *create;
static __typeof__(cudnnBackendDestroyDescriptor) *destroy;
static cudnnStatus_t counted_create(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out) {
  const cudnnStatus_t status = create(type, out);
  descriptors += status == CUDNN_STATUS_SUCCESS;
  return status;
}
static cudnnStatus_t counted_destroy(cudnnBackendDescriptor_t d) {
  descriptors--;
  return destroy(d);
}
static int open_cudnn(const char *test) {
  if (!cudnn && cmkd_cudnn_open(getenv("CMKD_CUDNN"), NULL, h100, &cudnn, &err) != CMKD_OK) {
    printf("SKIP: %s: %s\n", test, err.message);
    return 0;
  }
  if (!create) {
    /* without a driver cuDNN opens the run-time compiler again and again, each time for 72 KB that stay: here it stays
     * open */
    for (int version = 12; version < 15; version++) {
      char name[32];
      snprintf(name, sizeof name, "libnvrtc.so.%d", version);
      dlopen(name, RTLD_LAZY);
    }
    create = cudnn->cudnnBackendCreateDescriptor, destroy = cudnn->cudnnBackendDestroyDescriptor;
    cudnn->cudnnBackendCreateDescriptor = counted_create, cudnn->cudnnBackendDestroyDescriptor = counted_destroy;
  }
  return 1;
}
#define NEED_CUDNN() \
  do { \
    if (!open_cudnn(__func__)) skip(); \
  } while (0)
static int nothing_left(void **state) {
  (void)state;
  return descriptors != 0;
}
static int close_cudnn(void **state) {
  (void)state;
  if (cudnn) cudnn->cudnnBackendDestroyDescriptor = destroy;
  cmkd_cudnn_close(cudnn);
  return 0;
}
/* What cuBLAS keeps for itself. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libcublasLt\n"; }

enum { LAYERS = 512, PRECISIONS = 4 };
static const struct {
  const char *name;
  cmkd_dtype dtype;
  int tf32;
} precision[PRECISIONS] = {{"bf16", CMKD_BF16, 0}, {"fp16", CMKD_F16, 0}, {"fp32", CMKD_F32, 0}, {"tf32", CMKD_F32, 1}};

/* The different convolutions and linear layers of the networks, as the backend asks for them. */
static int layers_of(const char *const *archs, int batch, cmkd_cuda_conv_shape layer[LAYERS]) {
  int count = 0;
  for (; *archs; archs++) {
    cmkd_graph *graph_of;
    assert_ok(cmkd_net_build(*archs, (cmkd_net_shape){32, 32, 3, 100}, &graph_of, &err));
    for (int i = 0; i < graph_of->ops; i++) {
      const cmkd_op *op = &graph_of->op[i];
      const cmkd_shape in = graph_of->tensor[op->in[0]], out = graph_of->tensor[op->out];
      int known = 0;
      if (op->kind != CMKD_OP_CONV && op->kind != CMKD_OP_LINEAR) continue;
      cmkd_cuda_conv_shape s;
      memset(&s, 0, sizeof s);
      s.n = batch, s.h = in.h, s.w = in.w, s.c = in.c, s.oh = out.h, s.ow = out.w, s.k = out.c, s.groups = 1,
      s.stride = 1, s.kh = in.h, s.kw = in.w;
      if (op->kind == CMKD_OP_CONV)
        s.kh = op->kernel_h, s.kw = op->kernel_w, s.stride = op->stride, s.pad = op->pad, s.groups = op->groups;
      s.y_stride = op->kind == CMKD_OP_LINEAR ? s.k : cmkd_cuda_stride(s.k);
      for (int j = 0; j < count && !known; j++)
        known = !memcmp(&s, &layer[j], sizeof s);
      if (!known && count < LAYERS) layer[count++] = s;
    }
    cmkd_graph_free(graph_of);
  }
  return count;
}

static cmkd_conv_request request_of(const cmkd_cuda_conv_shape *shape, cmkd_conv_pass pass, int p, int accumulate) {
  cmkd_conv_request r = {.shape = *shape, .pass = pass, .tf32 = precision[p].tf32, .accumulate = accumulate};
  r.shape.dtype = r.shape.y_dtype = precision[p].dtype;
  return r;
}
static const char *text_of(const cmkd_conv_request *r, int p) {
  static char text[200];
  const cmkd_cuda_conv_shape *s = &r->shape;
  snprintf(text, sizeof text, "pass %d%s of %dx%dx%d -> %dx%dx%d, kernel %dx%d, stride %d, groups %d, %s", r->pass,
           r->accumulate ? " (adding)" : "", s->h, s->w, s->c, s->oh, s->ow, s->k, s->kh, s->kw, s->stride, s->groups,
           precision[p].name);
  return text;
}
static void free_plans(cmkd_cudnn_plan **plan, int count) {
  for (int i = 0; i < count; i++)
    cmkd_cudnn_plan_free(plan[i]);
}

/* cuDNN itself says that the plan is of the engine and the knobs that its name says. */
static int named_truly(const cmkd_cudnn_plan *plan) {
  bag b = {.lib = cudnn};
  recipe asked, got = {0};
  char name[NAME];
  descriptor config = make(&b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  get(&b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
  const int known = b.status == CUDNN_STATUS_SUCCESS && recipe_read(cudnn, config, &got) && recipe_name(&got, name) &&
                    recipe_parse(plan->name, &asked);
  empty(&b);
  /* knobs that were not asked for have their defaults */
  for (int i = 0, j; known && i < asked.knobs; i++) {
    for (j = 0; j < got.knobs && (got.knob[j] != asked.knob[i] || got.value[j] != asked.value[i]); j++)
      ;
    if (j == got.knobs) return 0;
  }
  return known && got.engine == asked.engine;
}

/* Plans there are, small enough, all different, and each is made again from its name. */
static int check_plans(const cmkd_conv_request *r, int p, int least) {
  enum { PLANS = 6 };
  cmkd_cudnn_plan *plan[PLANS], *again;
  int count;
  assert_ok(cmkd_cudnn_plans(cudnn, r, limit, PLANS, plan, &count, &err));
  if (count < least) fail_msg("no plan for %s", text_of(r, p));
  for (int i = 0; i < count; i++) {
    const char *name = cmkd_cudnn_plan_name(plan[i]);
    assert_true(cmkd_cudnn_plan_workspace(plan[i]) <= limit);
    if (r->pass == CMKD_CONV_BACKWARD_WEIGHTS) assert_int_equal(cmkd_cudnn_plan_dw_dtype(plan[i]), r->shape.dtype);
    assert_true(!strncmp(name, "cudnn:eng", 9) && !strchr(name, ' '));
    for (int j = 0; j < i; j++)
      assert_string_not_equal(name, cmkd_cudnn_plan_name(plan[j]));
    if (!named_truly(plan[i])) fail_msg("%s is something else: %s", name, text_of(r, p));
    if (i) continue;
    assert_ok(cmkd_cudnn_plan_named(cudnn, r, name, &again, &err));
    if (!again) fail_msg("%s is not made again: %s", name, text_of(r, p));
    assert_string_equal(cmkd_cudnn_plan_name(again), name);
    assert_int_equal(cmkd_cudnn_plan_workspace(again), cmkd_cudnn_plan_workspace(plan[i]));
    cmkd_cudnn_plan_free(again);
  }
  free_plans(plan, count);
  return count;
}

static void every_layer_has_a_plan_for_every_pass(void **state) {
  (void)state;
  static const char *const archs[] = {"resnet8x4", "resnet20", "wrn-16-2", "vgg8", "mobilenetv2_cifar", NULL};
  static cmkd_cuda_conv_shape layer[LAYERS];
  int requests = 0, grouped = 0;
  NEED_CUDNN();
  const int layers = layers_of(archs, 64, layer);
  assert_true(layers > 30);
  for (int i = 0; i < layers; i++)
    for (int p = 0; p < PRECISIONS; p++)
      for (int pass = 0; pass < 5; pass++) {
        static const cmkd_conv_pass passes[5] = {CMKD_CONV_FORWARD, CMKD_CONV_BACKWARD_DATA, CMKD_CONV_BACKWARD_DATA,
                                                 CMKD_CONV_BACKWARD_WEIGHTS, CMKD_CONV_FORWARD_FUSED};
        if (passes[pass] == CMKD_CONV_FORWARD_FUSED && precision[p].dtype != CMKD_F32)
          continue; /* compiled at run time, below */
        cmkd_conv_request r = request_of(&layer[i], passes[pass], p, pass == 2);
        r.act = CMKD_ACT_RELU;
        check_plans(&r, p, 1);
        requests++, grouped += layer[i].groups > 1;
      }
  printf("note: cuDNN %d has plans for all %d requests (%d of them depthwise) of %d layers\n",
         cmkd_cudnn_version(cudnn), requests, grouped, layers);
}

/* All forms finalise as graphs of operations. Which of them have engines: floats without a residual. The rest is
 * compiled by the driver's library at run time, where there is one. */
static void fused_forms(void **state) {
  (void)state;
  const cmkd_cuda_conv_shape s = {.n = 64,
                                  .h = 16,
                                  .w = 16,
                                  .c = 64,
                                  .oh = 16,
                                  .ow = 16,
                                  .k = 64,
                                  .kh = 3,
                                  .kw = 3,
                                  .stride = 1,
                                  .pad = 1,
                                  .groups = 1,
                                  .y_stride = 64};
  NEED_CUDNN();
  for (int p = 0; p < PRECISIONS; p++)
    for (int residual = 0; residual < 2; residual++)
      for (int act = 0; act < 3; act++) {
        cmkd_conv_request r = request_of(&s, CMKD_CONV_FORWARD_FUSED, p, 0);
        conv_graph *g;
        r.residual = residual, r.act = (cmkd_act)act;
        assert_ok(cmkd_cudnn_graph_make(cudnn, &r, &g, &err));
        assert_non_null(g);
        cmkd_cudnn_graph_release(g);
        if (precision[p].dtype == CMKD_F32 && !residual) check_plans(&r, p, 1);
      }
}

/* Engine by engine: what we make plans of computes the same every time and in the precision asked for; what we leave
 * out, we leave out for that. */
static void engines_are_left_out_for_their_notes(void **state) {
  (void)state;
  const cmkd_cuda_conv_shape s = {.n = 64,
                                  .h = 16,
                                  .w = 16,
                                  .c = 64,
                                  .oh = 16,
                                  .ow = 16,
                                  .k = 64,
                                  .kh = 3,
                                  .kw = 3,
                                  .stride = 1,
                                  .pad = 1,
                                  .groups = 1,
                                  .y_stride = 64};
  int plans = 0, changing = 0, cores = 0, cores_tf32 = 0;
  NEED_CUDNN();
  for (int p = 0; p < PRECISIONS; p++)
    for (int pass = 0; pass < 3; pass++) {
      static const cmkd_conv_pass passes[3] = {CMKD_CONV_FORWARD, CMKD_CONV_BACKWARD_DATA, CMKD_CONV_BACKWARD_WEIGHTS};
      const cmkd_conv_request r = request_of(&s, passes[pass], p, 0);
      int64_t engines = 0;
      conv_graph *g;
      assert_ok(cmkd_cudnn_graph_make(cudnn, &r, &g, &err));
      assert_non_null(g);
      get(&g->b, g->graph, CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT, CUDNN_TYPE_INT64, 1, &engines);
      assert_true(engines > 10);
      for (int64_t e = 0; e < engines; e++) {
        bag b = {.lib = cudnn};
        cudnnBackendNumericalNote_t notes[NOTES];
        cmkd_cudnn_plan *plan;
        char name[64];
        int has[CUDNN_NUMERICAL_NOTE_TYPE_COUNT] = {0};
        descriptor engine = make(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
        set_part(&b, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, g->graph);
        set_int64(&b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, e);
        set_part(&b, engine, CUDNN_ATTR_ENGINE_DEVICEPROP, cudnn->device);
        finish(&b, engine, "an engine");
        const int64_t count =
            get(&b, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES, notes);
        for (int64_t i = 0; i < count; i++)
          if ((int)notes[i] < CUDNN_NUMERICAL_NOTE_TYPE_COUNT) has[notes[i]] = 1;
        snprintf(name, sizeof name, "cudnn:eng%d{}", (int)e);
        assert_ok(cmkd_cudnn_plan_named(cudnn, &r, name, &plan, &err));
        if (plan) {
          assert_int_equal(b.status, CUDNN_STATUS_SUCCESS);
          assert_false(has[CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC] ||
                       has[CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION]);
          if (precision[p].dtype == CMKD_F32) assert_false(has[CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS]);
          if (precision[p].dtype == CMKD_F32 && !precision[p].tf32) assert_false(has[CUDNN_NUMERICAL_NOTE_TENSOR_CORE]);
        }
        plans += plan != NULL, changing += has[CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC];
        if (precision[p].dtype == CMKD_F32 && has[CUDNN_NUMERICAL_NOTE_TENSOR_CORE])
          *(precision[p].tf32 ? &cores_tf32 : &cores) += precision[p].tf32 ? plan != NULL : 1;
        cmkd_cudnn_plan_free(plan);
        empty(&b);
      }
      cmkd_cudnn_graph_release(g);
    }
  assert_true(plans > 0 && changing > 0 && cores > 0 && cores_tf32 > 0); /* there was something to tell apart */
}

static void names_are_checked(void **state) {
  (void)state;
  static const char *const good[] = {"cudnn:eng0{}", "cudnn:eng57{k2=17,k3=0}", "cudnn:eng1{k13=-1}"};
  static const char *const bad[] = {"",
                                    "own",
                                    "cudnn:eng",
                                    "cudnn:eng1",
                                    "cudnn:eng1{",
                                    "cudnn:eng1{k2=1",
                                    "cudnn:eng1{k2=1,}",
                                    "cudnn:eng1{,}",
                                    "cudnn:eng1{k2=1k3=2}",
                                    "cudnn:eng1{}x",
                                    "cudnn:eng1{k2= 1}",
                                    "cudnn:eng 1{}",
                                    "cudnn:eng+1{}",
                                    "cudnn:eng01{}",
                                    "cudnn:eng12345678901{}",
                                    "cudnn:eng1{k2=12345678901}",
                                    "cudnn:eng1{k2=}",
                                    "cudnn:eng1{k=2}",
                                    " cudnn:eng1{}",
                                    "%s%n{}"};
  const cmkd_cuda_conv_shape s = {.n = 2,
                                  .h = 8,
                                  .w = 8,
                                  .c = 8,
                                  .oh = 8,
                                  .ow = 8,
                                  .k = 8,
                                  .kh = 3,
                                  .kw = 3,
                                  .stride = 1,
                                  .pad = 1,
                                  .groups = 1,
                                  .y_stride = 8};
  char again[NAME], many[4000];
  recipe r;
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    assert_true(recipe_parse(good[i], &r));
    assert_true(recipe_name(&r, again));
    assert_string_equal(again, good[i]);
  }
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_false(recipe_parse(bad[i], &r));
  size_t used = (size_t)snprintf(many, sizeof many, "cudnn:eng1{k1=1");
  for (int i = 0; i < KNOBS; i++)
    used += (size_t)snprintf(many + used, sizeof many - used, ",k1=1");
  snprintf(many + used, sizeof many - used, "}");
  assert_false(recipe_parse(many, &r)); /* one knob too many */
  NEED_CUDNN();
  /* well-formed, and nothing that this cuDNN has */
  static const char *const none[] = {"own",
                                     "cudnn:eng999999999{}",
                                     "cudnn:eng-1{}",
                                     "cudnn:eng0{k999=1}",
                                     "cudnn:eng0{k1=999999999}",
                                     "cudnn:eng0{k1=0,k1=0,k1=0}"};
  for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
    cmkd_cudnn_plan *plan;
    const cmkd_conv_request request = request_of(&s, CMKD_CONV_FORWARD, 0, 0);
    assert_ok(cmkd_cudnn_plan_named(cudnn, &request, none[i], &plan, &err));
    assert_null(plan);
  }
}

/* Requests that are not cuDNN's: grouped layers with channels to pad. And plans without a device do not run. */
static void what_is_not_for_cudnn(void **state) {
  (void)state;
  cmkd_cuda_conv_shape s = {.n = 2,
                            .h = 8,
                            .w = 8,
                            .c = 12,
                            .oh = 8,
                            .ow = 8,
                            .k = 12,
                            .kh = 3,
                            .kw = 3,
                            .stride = 1,
                            .pad = 1,
                            .groups = 12,
                            .y_stride = 16};
  cmkd_cudnn_plan *plan[1];
  int count;
  NEED_CUDNN();
  cmkd_conv_request r = request_of(&s, CMKD_CONV_FORWARD, 0, 0);
  assert_ok(cmkd_cudnn_plans(cudnn, &r, limit, 1, plan, &count, &err));
  assert_int_equal(count, 0);
  r.shape.c = r.shape.k = 24, r.shape.groups = 3, r.shape.y_stride = 24;
  assert_ok(cmkd_cudnn_plans(cudnn, &r, limit, 1, plan, &count, &err));
  assert_int_equal(count, 0);
  r.shape.groups = 1;
  assert_ok(cmkd_cudnn_plans(cudnn, &r, limit, 1, plan, &count, &err));
  assert_int_equal(count, 1);
  assert_int_equal(cmkd_cudnn_run(cudnn, plan[0], NULL, NULL, NULL, NULL, NULL, &err), CMKD_ERR_UNSUPPORTED);
  free_plans(plan, count);
}
#endif

#define TEST(name) cmocka_unit_test_teardown(name, nothing_left)
int main(void) {
#ifdef LIBRARY
  const struct CMUnitTest tests[] = {
      TEST(what_is_missing_is_said),
      TEST(every_layer_has_a_plan_for_every_pass),
      TEST(fused_forms),
      TEST(engines_are_left_out_for_their_notes),
      TEST(names_are_checked),
      TEST(what_is_not_for_cudnn),
  };
  return cmocka_run_group_tests(tests, NULL, close_cudnn);
#else
  const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_missing_is_said)};
  printf("SKIP: every_layer_has_a_plan_for_every_pass, fused_forms, engines_are_left_out_for_their_notes, "
         "names_are_checked, what_is_not_for_cudnn: this build found no cudnn.h of 9.8 or later\n");
  return cmocka_run_group_tests(tests, NULL, NULL);
#endif
}
