# CMKD. `make` probes the machine, says what it found, and builds; `make help` lists the rest.
# Sources are found by folder: adding a .c, _avx2.c, .cu, tests/test_*.c, tests/fuzz_*.c or bench/*.c file needs no line here.

BUILD   ?= build
PREFIX  ?= /usr/local
DESTDIR ?=
VERSION := $(shell sed -nE 's/^.define CMKD_VERSION "(.*)"/\1/p' include/cmkd/api.h)
SOVERSION := 0
ifeq ($(origin CC),default)
CC := gcc
endif
NVCC    ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
SHELL   := /bin/bash
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla
OPT    ?= -O2 -g
SAN    ?=
OPENMP ?= -fopenmp
CFLAGS ?=
BASE_CPPFLAGS := -I. -Iinclude -D_GNU_SOURCE
ASAN   := OPT='-O1 -g' SAN='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer'
SECONDS ?= 30
VECTORS ?= ../shared/golden

# One line a step; V=1 shows the commands, -s nothing.
Q := $(if $(V),,@)
say = $(if $(V),,$(if $(findstring s,$(firstword -$(MAKEFLAGS))),,@printf '  %-5s %s\n' $(1) $(2);))
quote = '$(subst ','\'',$(1))'
# Goals for a bare clone run in a second make, after `deps`, with all cores unless -j says otherwise.
again = $(MAKE) $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc 2>/dev/null || echo 1))

# ---- what the machine has: each line compiles and links a real program -------------------------------------------------
OUTER  := help deps check demo asan fuzz format clean uninstall
CONFIG := $(BUILD)/config.mk
ifneq ($(filter-out $(OUTER),$(or $(MAKECMDGOALS),all)),)
include $(CONFIG)
endif

PKG = $(shell pkg-config $(1) $(2) 2>/dev/null)
FIND_HDF5_CPP = $(or $(call PKG,--cflags,hdf5-serial),$(call PKG,--cflags,hdf5))
FIND_HDF5_LIB = $(or $(call PKG,--libs,hdf5-serial),$(call PKG,--libs,hdf5),-lhdf5)
# probe NAME, HEADER, EXPRESSION, FLAGS, REMEDY: writes HAVE_NAME := 1 when it links
define probe
@printf '#include <%s>\nint main(void) { return (%s) == 0; }\n' '$(2)' '$(3)' > $(BUILD)/probe-$(1).c; \
if $(CC) -std=gnu17 -o $(BUILD)/probe-$(1) $(BUILD)/probe-$(1).c $(4) > $(BUILD)/probe-$(1).log 2>&1; \
then echo 'HAVE_$(1) := 1' >> $@.tmp; printf '  %-10s found\n' '$(1)'; \
else printf '  %-10s not found: %s\n' '$(1)' '$(5)'; fi; rm -f $(BUILD)/probe-$(1) $(BUILD)/probe-$(1).c
endef
# nvprobe NAME, HEADER, EXPRESSION, FLAGS, REMEDY: the same with nvcc
define nvprobe
@printf '#include <%s>\nint main(void) { return (%s) == 0; }\n' '$(2)' '$(3)' > $(BUILD)/probe-$(1).cu; \
if [ -n "$(NVCC)" ] && $(NVCC) -o $(BUILD)/probe-$(1) $(BUILD)/probe-$(1).cu $(4) > $(BUILD)/probe-$(1).log 2>&1; \
then echo 'HAVE_$(1) := 1' >> $@.tmp; printf '  %-10s found\n' '$(1)'; \
else printf '  %-10s not found: %s\n' '$(1)' '$(5)'; fi; rm -f $(BUILD)/probe-$(1) $(BUILD)/probe-$(1).cu
endef
$(CONFIG): Makefile
	@mkdir -p $(BUILD); : > $@.tmp; echo 'looking for libraries (logs: $(BUILD)/probe-*.log)'
	@command -v $(firstword $(CC)) > /dev/null || { echo 'make: no C compiler ($(CC)). Run: make deps'; rm -f $@.tmp; exit 1; }
	@printf '%s\n' $(call quote,HDF5_CPP := $(FIND_HDF5_CPP)) $(call quote,HDF5_LIB := $(FIND_HDF5_LIB)) >> $@.tmp
	$(call probe,HDF5,hdf5.h,(void *)H5open != 0,$(FIND_HDF5_CPP) $(FIND_HDF5_LIB),required; run make deps)
	$(call probe,ZSTD,zstd.h,ZSTD_versionNumber(),-lzstd,required; run make deps)
	$(call probe,ZLIB,zlib.h,(void *)zlibVersion != 0,-lz,required; run make deps)
	$(call probe,JANSSON,jansson.h,(void *)json_object != 0,-ljansson,required; run make deps)
	$(call probe,CRYPTO,openssl/evp.h,(void *)EVP_sha256 != 0,-lcrypto,required; run make deps)
	$(call probe,OPENMP,omp.h,omp_get_max_threads(),$(OPENMP),required; run make deps)
	$(call probe,ONEDNN,dnnl.h,(void *)dnnl_version != 0,-ldnnl,our own kernels compute all convolutions (slower without AVX2); run make deps)
	$(call probe,CMOCKA,stdio.h,1,-include stdarg.h -include stddef.h -include setjmp.h -include stdint.h -include cmocka.h -lcmocka,make check needs it; run make deps)
	$(call nvprobe,CUDA,cuda_runtime.h,1,,--device cuda is left out; the CPU backend is whole)
	$(call nvprobe,CUDNN,cudnn.h,sizeof(char[CUDNN_VERSION >= 90800 ? 1 : -1]),,our own kernels compute all convolutions on CUDA (cuDNN 9.8 or later is opened at run time where its header was found))
	@mv $@.tmp $@

REQUIRED := HDF5 ZSTD ZLIB JANSSON CRYPTO OPENMP
MISSING = $(strip $(foreach r,$(REQUIRED),$(if $(HAVE_$(r)),,$(r))))
LIBS := -lzstd -lz -ljansson -lcrypto $(if $(HAVE_ONEDNN),-ldnnl) $(HDF5_LIB) -ldl -lm -pthread
ALL_CPPFLAGS := $(BASE_CPPFLAGS) $(HDF5_CPP) $(CPPFLAGS)
ALL_CFLAGS := -std=c17 $(OPT) -fPIC $(OPENMP) -fno-math-errno $(WARN) $(SAN) $(ALL_CPPFLAGS) $(CFLAGS)
LINK = $(CC) -Wl,--as-needed $(OPENMP) $(SAN) $(LDFLAGS)
%_avx2.o:   ISA := -mavx2 -mfma -mf16c -mbmi2 -ffp-contract=fast
%_avx512.o: ISA := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mfma -mf16c -mbmi2 -ffp-contract=fast
$(BUILD)/tests/test_loss_lanes.o: ISA := -Wno-psabi # vectors wider than the machine's, static functions only
$(BUILD)/kernels/cpu/conv/dnnl.o: ISA := $(if $(HAVE_ONEDNN),-DHAVE_ONEDNN=1) # the one file that knows of it
CUDA_ISA = -I$(dir $(NVCC))../include $(if $(HAVE_CUDNN),-DHAVE_CUDNN=1)
$(BUILD)/kernels/cuda/%.o $(BUILD)/tests/test_cudnn_plans.o: ISA := $(CUDA_ISA)

# ---- objects ------------------------------------------------------------------------------------------------------------
LIB_DIRS := base formats formats/cache formats/cache/reader formats/cache/writer formats/weights formats/images kernels kernels/ref \
            kernels/cpu kernels/cpu/conv kernels/cpu/loss nets precompute train
# What belongs to programs alone: the command line, the terminal, signals, the environment. Programs and tests link it; it is not installed.
PROGRAM_SRC := $(sort $(wildcard base/program/*.c precompute/command_*.c train/command_*.c)) precompute/precision.c precompute/recompute.c \
               precompute/reshape.c precompute/shared_caches.c precompute/shared_options.c train/recipe.c train/recipe_apply.c \
               train/report.c train/trainer.c
PROGRAM_OBJ := $(PROGRAM_SRC:%.c=$(BUILD)/%.o)
LIB_SRC  := $(filter-out %/main.c formats/cache/h5zstd.c $(PROGRAM_SRC),$(sort $(wildcard $(LIB_DIRS:%=%/*.c))))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
ARCHIVES := $(BUILD)/libcmkd-program.a $(BUILD)/libcmkd.a
# libcmkd.so exports what include/cmkd marks with CMKD_API; the CUDA plugin's own objects stay visible, for tests.
$(LIB_OBJ): VISIBILITY := -fvisibility=hidden
PROGRAMS := $(BUILD)/cmkd-cache $(BUILD)/cmkd-train
PLUGIN   := $(BUILD)/libh5zstd.so
CU_DIRS  := kernels/cuda kernels/cuda/conv kernels/cuda/loss
CU_SRC   := $(sort $(wildcard $(CU_DIRS:%=%/*.cu) $(CU_DIRS:%=%/*.c)))
CUDA_LIB := $(if $(HAVE_CUDA),$(if $(CU_SRC),$(BUILD)/libcmkd-cuda.so))
# the few files that know where things get installed
PREFIX_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(shell grep -l CMKD_LIBDIR $(LIB_SRC) $(PROGRAM_SRC) 2>/dev/null))

.PHONY: all need FORCE
all: need $(BUILD)/libcmkd.a $(BUILD)/libcmkd.so $(BUILD)/cmkd.pc $(PROGRAMS) $(PLUGIN) $(CUDA_LIB)
need: # a failed probe is repeated the next time
	@if [ -n "$(MISSING)" ]; then rm -f $(CONFIG); echo 'make: missing: $(MISSING). Run: make deps'; exit 1; fi

# Stamps hold what a file's name does not show: flags, the prefix, the list of objects. They change only when their text does.
stamp = @mkdir -p $(@D); printf '%s\n' $(call quote,$(1)) | cmp -s - $@ || printf '%s\n' $(call quote,$(1)) > $@
$(BUILD)/flags.stamp: FORCE
	$(call stamp,$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(LIBS))
$(BUILD)/prefix.stamp: FORCE
	$(call stamp,$(PREFIX))
$(BUILD)/objects.stamp: FORCE
	$(call stamp,$(LIB_OBJ:$(BUILD)/%=%) + $(PROGRAM_OBJ:$(BUILD)/%=%))
$(BUILD)/nvflags.stamp: FORCE
	$(call stamp,$(NVCC) $(NVFLAGS))

$(PREFIX_OBJ): $(BUILD)/prefix.stamp
$(PREFIX_OBJ): ISA := -DCMKD_LIBDIR='"$(PREFIX)/lib"'
$(BUILD)/%.o: %.c $(CONFIG) $(BUILD)/flags.stamp | need
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(ALL_CFLAGS) $(VISIBILITY) $(ISA) -MMD -MP -c -o $@ $<
$(BUILD)/libcmkd.a: $(LIB_OBJ) $(BUILD)/objects.stamp
	$(call say,AR,$@)
	$(Q)rm -f $@; ar rcs $@ $(LIB_OBJ)
$(BUILD)/libcmkd-program.a: $(PROGRAM_OBJ) $(BUILD)/objects.stamp
	$(call say,AR,$@)
	$(Q)rm -f $@; ar rcs $@ $(PROGRAM_OBJ)
$(BUILD)/libcmkd.so.$(VERSION): $(LIB_OBJ) $(BUILD)/objects.stamp
	$(call say,LINK,$@)
	$(Q)$(LINK) -shared -Wl,-soname,libcmkd.so.$(SOVERSION) $(if $(SAN),,-Wl,-z,defs) -o $@ $(LIB_OBJ) $(LIBS)
$(BUILD)/libcmkd.so: $(BUILD)/libcmkd.so.$(VERSION)
	@ln -sf libcmkd.so.$(VERSION) $(BUILD)/libcmkd.so.$(SOVERSION); ln -sf libcmkd.so.$(SOVERSION) $@
$(BUILD)/cmkd-cache: $(BUILD)/precompute/main.o $(ARCHIVES)
$(BUILD)/cmkd-train: $(BUILD)/train/main.o $(ARCHIVES)
$(BUILD)/cmkd-cache $(BUILD)/cmkd-train:
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ $(LIBS)
# opened by programs that are not sanitized
$(BUILD)/libh5zstd.so: override ALL_CFLAGS := $(filter-out $(SAN),$(ALL_CFLAGS))
$(BUILD)/libh5zstd.so: override SAN :=
$(BUILD)/libh5zstd.so: $(BUILD)/formats/cache/h5zstd.o
	$(call say,LINK,$@)
	$(Q)$(LINK) -shared -o $@ $^ -lzstd
$(BUILD)/cmkd.pc: Makefile $(CONFIG) $(BUILD)/prefix.stamp
	@printf 'prefix=%s\nlibdir=$${prefix}/lib\nincludedir=$${prefix}/include\n\nName: cmkd\nDescription: knowledge distillation from cached teachers\nVersion: %s\nLibs: -L$${libdir} -lcmkd\nLibs.private: %s -fopenmp\nCflags: -I$${includedir}\n' \
	  '$(PREFIX)' '$(VERSION)' '$(LIBS)' > $@

# ---- CUDA: a shared object opened at run time ---------------------------------------------------------------------------
# Code for Hopper; the driver compiles for other GPUs from Ampere on. -lineinfo lets compute-sanitizer name source
# lines; it costs megabytes, no speed.
GENCODE ?= -gencode arch=compute_80,code=[compute_80,sm_90]
NVFLAGS := -std=c++17 -O3 -lineinfo $(GENCODE) -Xcompiler -fPIC,-Wall -I. -Iinclude
CU_OBJ := $(patsubst %.cu,$(BUILD)/%.cu.o,$(filter %.cu,$(CU_SRC))) $(patsubst %.c,$(BUILD)/%.o,$(filter %.c,$(CU_SRC)))
$(BUILD)/%.cu.o: %.cu $(CONFIG) $(BUILD)/nvflags.stamp
	@mkdir -p $(@D)
	$(call say,NVCC,$<)
	$(Q)$(NVCC) $(NVFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/libcmkd-cuda.so: $(CU_OBJ) $(BUILD)/libcmkd.a
	$(call say,LINK,$@)
	$(Q)$(NVCC) -shared $(GENCODE) -o $@ $^ -Xlinker --exclude-libs,ALL -lgomp $(LIBS:-pthread=-lpthread)

# ---- tests and benchmarks -----------------------------------------------------------------------------------------------
TESTS := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/test_*.c)))
FUZZ  := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/fuzz_*.c)))
BENCH := $(sort $(patsubst bench/%.c,%,$(wildcard bench/*.c)) $(patsubst bench/%.sh,%,$(wildcard bench/*.sh)))
TEST_SUPPORT := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support*.c))
.SECONDARY:
$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(TEST_SUPPORT) $(ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ -lcmocka $(LIBS)
$(BUILD)/tests/fuzz_%: $(BUILD)/tests/fuzz_%.o $(ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(LINK) -fsanitize=fuzzer -o $@ $^ $(LIBS)
$(BUILD)/tests/check_vectors: $(BUILD)/tests/check_vectors.o $(BUILD)/libcmkd.a
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ $(LIBS)
BENCH_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard bench/*.c))
$(BENCH_BIN): $(BUILD)/bench/%: $(BUILD)/bench/%.o $(ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ $(LIBS)

.PHONY: tests-build run-tests run-demo run-fuzz fuzz-build check-vectors bench $(BENCH:%=bench-%)
tests-build: all $(TESTS)
	@if [ -z "$(HAVE_CMOCKA)" ]; then rm -f $(CONFIG); echo 'make: the tests need cmocka. Run: make deps'; exit 1; fi
run-tests: tests-build
	@CMKD_BUILD=$(abspath $(BUILD)) CC='$(CC)' tests/run $(TESTS)
fuzz-build: $(FUZZ)
check-vectors: all $(if $(wildcard tests/check_vectors.c),$(BUILD)/tests/check_vectors)
	$(BUILD)/tests/check_vectors "$(VECTORS)"
bench: $(BENCH:%=bench-%)
$(BENCH:%=bench-%): bench-%: all
	@$(if $(wildcard bench/$*.c),$(MAKE) $(BUILD)/bench/$*)
	@CMKD_BUILD=$(abspath $(BUILD)) $(if $(wildcard bench/$*.sh),bench/$*.sh,$(BUILD)/bench/$*)
run-demo: all
	@CMKD_BUILD=$(abspath $(BUILD)) recipes/demo.sh

# ---- install ------------------------------------------------------------------------------------------------------------
ROOT = $(DESTDIR)$(PREFIX)
LIB_NAMES := libcmkd.a libcmkd.so libcmkd.so.$(SOVERSION) libcmkd.so.$(VERSION) libcmkd-cuda.so
.PHONY: install uninstall
install: all
	install -d $(ROOT)/bin $(ROOT)/lib/pkgconfig $(ROOT)/lib/cmkd $(ROOT)/include/cmkd $(ROOT)/share/cmkd/recipes $(ROOT)/share/cmkd/pytorch \
	  $(ROOT)/share/cmkd/examples
	install -m 755 $(PROGRAMS) $(ROOT)/bin
	install -m 644 $(BUILD)/libcmkd.a $(ROOT)/lib
	install -m 755 $(BUILD)/libcmkd.so.$(VERSION) $(CUDA_LIB) $(ROOT)/lib
	ln -sf libcmkd.so.$(VERSION) $(ROOT)/lib/libcmkd.so.$(SOVERSION)
	ln -sf libcmkd.so.$(SOVERSION) $(ROOT)/lib/libcmkd.so
	install -m 755 $(PLUGIN) $(ROOT)/lib/cmkd
	install -m 644 include/cmkd/*.h $(ROOT)/include/cmkd
	install -m 644 $(BUILD)/cmkd.pc $(ROOT)/lib/pkgconfig
	install -m 644 recipes/*.json $(ROOT)/share/cmkd/recipes
	install -m 644 docs/pytorch/*.py $(ROOT)/share/cmkd/pytorch
	install -m 644 docs/examples/*.c $(ROOT)/share/cmkd/examples
uninstall:
	rm -f $(ROOT)/bin/cmkd-cache $(ROOT)/bin/cmkd-train $(LIB_NAMES:%=$(ROOT)/lib/%) $(ROOT)/lib/pkgconfig/cmkd.pc $(ROOT)/lib/cmkd/libh5zstd.so
	rm -rf $(ROOT)/include/cmkd $(ROOT)/share/cmkd
	-rmdir $(ROOT)/lib/cmkd 2> /dev/null

# ---- from a bare clone --------------------------------------------------------------------------------------------------
.PHONY: help deps check asan fuzz demo format clean
help:
	@printf '%s\n' 'make                builds the programs and the library into $(BUILD)/' \
	  'make demo           a teacher, its cache, three students on Fashion-MNIST; one table (a few minutes)' \
	  'make check          everything needed, then all tests' 'make asan           the tests under AddressSanitizer and UBSan' \
	  'make fuzz           every parser under libFuzzer, SECONDS=$(SECONDS) each (needs clang)' 'make deps           installs what is missing (apt; never CUDA)' \
	  'make check-vectors  the losses against golden vectors in VECTORS=$(VECTORS)' \
	  'make bench          all benchmarks, or one of:$(BENCH:%= bench-%)' \
	  'make gpu-kit        what bench/gpu/run-all needs on a machine with a GPU: $(BUILD)/gpu-kit.tar.xz (needs nvcc)' \
	  'make gpu-data       CIFAR-100 for it, from CMKD_SHARED=../shared: $(BUILD)/gpu-data/, pieces of at most 25 MB' \
	  'make gpu-reference  what the CPU computes, for it to compare with: $(BUILD)/gpu-reference.tar' \
	  'make install        into PREFIX=$(PREFIX), under DESTDIR if given; make uninstall takes it away' \
	  'make format         every C and CUDA file as .clang-format has it' 'make clean          removes $(BUILD)/' '' 'V=1 shows commands; BUILD=DIR builds elsewhere; CC, OPT, SAN, CFLAGS, NVCC, GENCODE as usual.'
deps:
	@.ci/deps '$(BUILD)'
check: deps
	+@$(again) run-tests
asan: deps
	+@$(again) BUILD=$(BUILD)/asan $(ASAN) run-tests
demo: deps
	+@$(again) all
	+@$(MAKE) run-demo
fuzz: deps
	+@if echo 'int LLVMFuzzerTestOneInput(const char *d, long n); int LLVMFuzzerTestOneInput(const char *d, long n) { return !d + (int)n < 0; }' | clang -x c -fsanitize=fuzzer,address,undefined -o /dev/null - 2> /dev/null; \
	then $(again) BUILD=$(BUILD)/fuzz CC=clang NVCC=/none OPENMP='-Itests/serial -Wno-unknown-pragmas -Wno-unused-variable -Wno-unknown-attributes' \
	  OPT='-O1 -g' SAN='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined' fuzz-build \
	  && tests/fuzz '$(abspath $(BUILD))/fuzz' '$(SECONDS)'; \
	else echo 'SKIP: make fuzz needs clang with libFuzzer (apt-get install clang)'; fi
# with the version that tests/test_format.sh checks with
format:
	git ls-files '*.c' '*.h' '*.cu' '*.cpp' | xargs $$(command -v clang-format-14 || echo clang-format) -i
clean:
	rm -rf $(BUILD)

-include $(LIB_OBJ:.o=.d) $(PROGRAM_OBJ:.o=.d) $(TESTS:=.d) $(FUZZ:=.d) $(TEST_SUPPORT:.o=.d) $(BENCH:%=$(BUILD)/bench/%.d) $(BUILD)/tests/check_vectors.d
-include $(BUILD)/precompute/main.d $(BUILD)/train/main.d $(BUILD)/formats/cache/h5zstd.d $(CU_OBJ:.o=.d)
-include tests/simt/rules.mk
-include bench/gpu/rules.mk
