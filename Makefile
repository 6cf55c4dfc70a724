# CMKD. `make` probes the machine, says what it found, and builds; `make help` lists the rest.
# Sources are found by folder: adding a .c, _avx2.c, .cu, tests/test_*.c or tests/fuzz_*.c file needs no line here.

BUILD  ?= build
PREFIX ?= /usr/local
DESTDIR ?=
VERSION := 0.1.0
CC     ?= gcc
NVCC   ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
SHELL  := /bin/bash
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:

WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wno-unused-parameter
OPT    ?= -O2 -g
SAN    :=
CFLAGS ?=
CPPFLAGS += -I. -Iinclude -D_GNU_SOURCE -DCMKD_VERSION='"$(VERSION)"' -DCMKD_LIBDIR='"$(PREFIX)/lib"'

# ---- what the machine has: each line compiles and links a real program -------------------------------------------------
PKG = $(shell pkg-config $(1) $(2) 2>/dev/null)
HDF5_CPP := $(or $(call PKG,--cflags,hdf5-serial),$(call PKG,--cflags,hdf5))
HDF5_LIB := $(or $(call PKG,--libs,hdf5-serial),$(call PKG,--libs,hdf5),-lhdf5)
CONFIG := $(BUILD)/config.mk
ifeq ($(filter clean help deps,$(MAKECMDGOALS)),)
include $(CONFIG)
endif

# probe NAME, HEADER, EXPRESSION, FLAGS: writes HAVE_NAME := 1 when it links
define probe
@mkdir -p $(BUILD); printf '#include <%s>\nint main(void) { return (%s) == 0; }\n' '$(2)' '$(3)' > $(BUILD)/probe-$(1).c; \
if $(CC) -std=gnu17 -o $(BUILD)/probe-$(1) $(BUILD)/probe-$(1).c $(4) > $(BUILD)/probe-$(1).log 2>&1; \
then echo 'HAVE_$(1) := 1' >> $@.tmp; printf '  %-10s found\n' '$(1)'; \
else printf '  %-10s not found: %s\n' '$(1)' '$(5)'; fi; rm -f $(BUILD)/probe-$(1) $(BUILD)/probe-$(1).c
endef
$(CONFIG): Makefile
	@mkdir -p $(BUILD); rm -f $@.tmp; touch $@.tmp; echo 'looking for libraries (logs: $(BUILD)/probe-*.log)'
	$(call probe,HDF5,hdf5.h,(void *)H5open != 0,$(HDF5_CPP) $(HDF5_LIB),required; run make deps)
	$(call probe,ZSTD,zstd.h,ZSTD_versionNumber(),-lzstd,required; run make deps)
	$(call probe,ZLIB,zlib.h,(void *)zlibVersion != 0,-lz,required; run make deps)
	$(call probe,JANSSON,jansson.h,(void *)json_object != 0,-ljansson,required; run make deps)
	$(call probe,CRYPTO,openssl/evp.h,(void *)EVP_sha256 != 0,-lcrypto,required; run make deps)
	$(call probe,OPENMP,omp.h,omp_get_max_threads(),-fopenmp,required; run make deps)
	$(call probe,ONEDNN,dnnl.h,(void *)dnnl_version != 0,-ldnnl,convolutions fall back to plain loops (slow); run make deps)
	$(call probe,CMOCKA,stdio.h,1,-include stdarg.h -include stddef.h -include setjmp.h -include stdint.h -include cmocka.h -lcmocka,make check needs it; run make deps)
	@if [ -n "$(NVCC)" ] && printf 'int main(void) { return 0; }\n' > $(BUILD)/probe.cu && $(NVCC) -o $(BUILD)/probe-cuda $(BUILD)/probe.cu > $(BUILD)/probe-CUDA.log 2>&1; \
	then echo 'HAVE_CUDA := 1' >> $@.tmp; printf '  %-10s found\n' CUDA; else printf '  %-10s not found: --device cuda is left out; the CPU backend is whole\n' CUDA; fi; rm -f $(BUILD)/probe.cu $(BUILD)/probe-cuda
	@if grep -q HAVE_CUDA $@.tmp && printf '#include <cudnn.h>\nint main(void) { return cudnnGetVersion() == 0; }\n' > $(BUILD)/probe.cu && $(NVCC) -o $(BUILD)/probe-cuda $(BUILD)/probe.cu -lcudnn > $(BUILD)/probe-CUDNN.log 2>&1; \
	then echo 'HAVE_CUDNN := 1' >> $@.tmp; printf '  %-10s found\n' CUDNN; else printf '  %-10s not found: no training on CUDA\n' CUDNN; fi; rm -f $(BUILD)/probe.cu $(BUILD)/probe-cuda
	@mv $@.tmp $@

REQUIRED := HDF5 ZSTD ZLIB JANSSON CRYPTO OPENMP
MISSING = $(strip $(foreach r,$(REQUIRED),$(if $(HAVE_$(r)),,$(r))))
# until every backend is on trunk
LIBS := -Wl,-u,cmkd_backend_cpu -Wl,-u,cmkd_backend_ref -lzstd -lz -ljansson -lcrypto $(if $(HAVE_ONEDNN),-ldnnl) $(HDF5_LIB) -ldl -lm -pthread
CPPFLAGS += $(HDF5_CPP) $(if $(HAVE_ONEDNN),-DHAVE_ONEDNN=1)
ALL_CFLAGS = -std=c17 $(OPT) -fPIC -fopenmp -fno-math-errno -fvisibility=default $(WARN) $(SAN) $(CPPFLAGS) $(CFLAGS)
%_avx2.o:   ISA := -mavx2 -mfma -mf16c -mbmi2 -ffp-contract=fast
%_avx512.o: ISA := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mfma -mf16c -mbmi2 -ffp-contract=fast

# ---- objects ------------------------------------------------------------------------------------------------------------
LIB_DIRS := base formats kernels kernels/ref kernels/cpu nets precompute train
LIB_SRC  := $(filter-out %/main.c formats/h5zstd.c,$(wildcard $(LIB_DIRS:%=%/*.c)))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
PROGRAMS := $(patsubst %/main.c,%,$(wildcard precompute/main.c train/main.c))
PROGRAM_FILES := $(if $(filter precompute,$(PROGRAMS)),$(BUILD)/cmkd-cache) $(if $(filter train,$(PROGRAMS)),$(BUILD)/cmkd-train)
PLUGIN   := $(if $(wildcard formats/h5zstd.c),$(BUILD)/libh5zstd.so)
CU_SRC   := $(wildcard kernels/cuda/*.cu kernels/cuda/*.c)
CUDA_LIB := $(if $(HAVE_CUDA),$(if $(CU_SRC),$(BUILD)/libcmkd-cuda.so))

.PHONY: all help clean deps check asan demo install check-vectors fuzz FORCE
all: need $(BUILD)/libcmkd.a $(BUILD)/libcmkd.so $(BUILD)/cmkd.pc $(PROGRAM_FILES) $(PLUGIN) $(CUDA_LIB)
.PHONY: need
need:
	@if [ -n "$(MISSING)" ]; then echo 'make: missing: $(MISSING). Run: make deps'; exit 1; fi

$(BUILD)/%.o: %.c $(CONFIG)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(ISA) -MMD -MP -c -o $@ $<
$(BUILD)/libcmkd.a: $(LIB_OBJ)
	@rm -f $@; ar rcs $@ $^
$(BUILD)/libcmkd.so: $(LIB_OBJ)
	$(CC) -shared -fopenmp $(SAN) -Wl,-soname,libcmkd.so.0 -o $@ $^ $(LIBS)
$(BUILD)/cmkd-cache: $(BUILD)/precompute/main.o $(BUILD)/libcmkd.a
	$(CC) -fopenmp $(SAN) -o $@ $^ $(LIBS)
$(BUILD)/cmkd-train: $(BUILD)/train/main.o $(BUILD)/libcmkd.a
	$(CC) -fopenmp $(SAN) -o $@ $^ $(LIBS)
$(BUILD)/libh5zstd.so: $(BUILD)/formats/h5zstd.o
	$(CC) -shared $(SAN) -o $@ $^ -lzstd
$(BUILD)/cmkd.pc: Makefile
	@printf 'prefix=%s\nlibdir=$${prefix}/lib\nincludedir=$${prefix}/include\n\nName: cmkd\nDescription: knowledge distillation from cached teachers\nVersion: %s\nLibs: -L$${libdir} -lcmkd\nLibs.private: %s -fopenmp\nCflags: -I$${includedir}\n' '$(PREFIX)' '$(VERSION)' '$(LIBS)' > $@

# ---- CUDA: a shared object opened at run time ---------------------------------------------------------------------------
GENCODE ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90
NVFLAGS := -std=c++17 -O3 $(GENCODE) -Xcompiler -fPIC,-Wall -I. -Iinclude -DCMKD_VERSION='"$(VERSION)"'
CU_OBJ := $(patsubst %.cu,$(BUILD)/%.cu.o,$(filter %.cu,$(CU_SRC))) $(patsubst %.c,$(BUILD)/%.o,$(filter %.c,$(CU_SRC)))
$(BUILD)/%.cu.o: %.cu $(CONFIG)
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/kernels/cuda/%.o: CPPFLAGS += -I$(dir $(NVCC))../include
$(BUILD)/libcmkd-cuda.so: $(CU_OBJ) $(BUILD)/libcmkd.a
	$(NVCC) -shared $(GENCODE) -o $@ $^ -Xlinker --exclude-libs,ALL $(if $(HAVE_CUDNN),-lcudnn -lcublasLt) -lgomp $(LIBS:-pthread=-lpthread)

# ---- tests --------------------------------------------------------------------------------------------------------------
TEST_SRC := $(wildcard tests/test_*.c)
TESTS    := $(TEST_SRC:tests/%.c=$(BUILD)/tests/%)
TEST_SUPPORT := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support*.c))
$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(TEST_SUPPORT) $(BUILD)/libcmkd.a
	$(CC) -fopenmp $(SAN) -o $@ $^ -lcmocka $(LIBS)
tests-build: all $(TESTS)
check: tests-build
	@CMKD_BUILD=$(abspath $(BUILD)) tests/run $(TESTS)
asan:
	$(MAKE) BUILD=$(BUILD)/asan OPT='-O1 -g' SAN='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' check

clean:
	rm -rf $(BUILD)

-include $(LIB_OBJ:.o=.d) $(TESTS:=.d) $(BUILD)/precompute/main.d $(BUILD)/train/main.d $(CU_OBJ:.o=.d)
