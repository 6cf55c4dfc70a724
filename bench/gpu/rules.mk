# The programs behind bench/gpu/run-all that need no CUDA toolkit: C on the backend table, for a GPU through the plugin,
# or for the CPU.
GPU_PROGRAMS := $(BUILD)/bench/gpu/agree $(BUILD)/bench/gpu/step
AGREE_OBJ    := $(BUILD)/bench/gpu/reference.o $(BUILD)/bench/gpu/inputs.o
$(GPU_PROGRAMS): $(BUILD)/bench/gpu/%: $(BUILD)/bench/gpu/%.o $(BUILD)/bench/gpu/world.o $(ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ $(LIBS)
$(BUILD)/bench/gpu/agree: $(AGREE_OBJ)
tests-build: $(GPU_PROGRAMS)
-include $(GPU_PROGRAMS:=.d) $(BUILD)/bench/gpu/world.d $(AGREE_OBJ:.o=.d)

# ---- gpu-kit: all that run-all needs on another machine, laid out as a build folder ---------------------------------
# Linked anew from the build's objects but without oneDNN, which would be half of it. Shared libraries come along in
# lib/ (bench/gpu/pack) and are found by a DT_RPATH: it holds for the libraries of libraries too, and an
# LD_LIBRARY_PATH would reach PyTorch and cuDNN as well.
KIT       := $(BUILD)/kit
KIT_LIBS  := $(filter-out -ldnnl,$(LIBS))
KIT_NVLIBS := -lgomp $(KIT_LIBS:-pthread=-lpthread)
KIT_OBJ   := $(patsubst $(BUILD)/kernels/cpu/conv/dnnl.o,$(KIT)/conv_dnnl.o,$(LIB_OBJ))
KIT_MAIN  := $(KIT)/cmkd-cache $(KIT)/cmkd-train
KIT_GPU   := $(GPU_PROGRAMS:$(BUILD)/%=$(KIT)/%)
KIT_TESTS := $(DEVICE_TESTS:$(BUILD)/%=$(KIT)/%)
KIT_CUDA  := $(KIT)/libcmkd-cuda.so $(KIT)/bench/gpu/loss
KIT_ALL   := $(KIT_MAIN) $(KIT_GPU) $(KIT_TESTS) $(KIT_CUDA)
KIT_LACKS := $(if $(HAVE_CUDA),$(if $(HAVE_CMOCKA),,cmocka (make deps)),the CUDA toolkit (nvcc))
KIT_LACKS := $(or $(KIT_LACKS),$(if $(SAN),a build without sanitizers))
kit_link   = $(LINK) -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/$(1)'
kit_nvlink = $(NVCC) $(GENCODE) -Xlinker --disable-new-dtags,-rpath,'$$ORIGIN/$(1)'

$(KIT)/conv_dnnl.o: kernels/cpu/conv/dnnl.c $(BUILD)/kernels/cpu/conv/dnnl.o
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<
$(KIT)/libcmkd.a: $(KIT_OBJ) $(BUILD)/objects.stamp
	$(call say,AR,$@)
	$(Q)rm -f $@; ar rcs $@ $(KIT_OBJ)
$(KIT)/cmkd-cache: $(BUILD)/precompute/main.o
$(KIT)/cmkd-train: $(BUILD)/train/main.o
$(KIT_GPU): $(KIT)/%: $(BUILD)/%.o $(BUILD)/bench/gpu/world.o
$(KIT)/bench/gpu/agree: $(AGREE_OBJ)
$(KIT_TESTS): $(KIT)/tests/test_device_%: $(BUILD)/device/tests/simt/test_cuda_%.o
$(KIT_TESTS): $(BUILD)/device/tests/simt/gpu.o $(TEST_SUPPORT)
$(KIT)/libcmkd-cuda.so: $(CU_OBJ)
$(KIT)/kernels.a: $(CU_OBJ) # of which loss takes its own few
	$(call say,AR,$@)
	$(Q)rm -f $@; ar rcs $@ $(CU_OBJ)
$(KIT)/bench/gpu/loss: $(BUILD)/bench/gpu/loss.cu.o $(KIT)/kernels.a
$(KIT_ALL): bench/gpu/rules.mk $(BUILD)/libcmkd-program.a $(KIT)/libcmkd.a
kit_inputs = $(filter %.o,$^) $(BUILD)/libcmkd-program.a $(KIT)/libcmkd.a
$(KIT_MAIN):
	$(call say,LINK,$@)
	$(Q)$(call kit_link,lib) -o $@ $(kit_inputs) $(KIT_LIBS)
$(KIT_GPU):
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(call kit_link,../../lib) -o $@ $(kit_inputs) $(KIT_LIBS)
$(KIT_TESTS):
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(call kit_link,../lib) -o $@ $(kit_inputs) -lcmocka $(KIT_LIBS)
$(KIT)/libcmkd-cuda.so:
	$(call say,LINK,$@)
	$(Q)$(call kit_nvlink,lib) -shared -o $@ $(kit_inputs) -Xlinker --exclude-libs,ALL $(KIT_NVLIBS)
$(KIT)/bench/gpu/loss:
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(call kit_nvlink,../../lib) -o $@ $(filter %.o,$^) $(KIT)/kernels.a $(KIT)/libcmkd.a $(KIT_NVLIBS)
tests-build: $(if $(KIT_LACKS),,$(KIT_ALL))

.PHONY: gpu-kit gpu-data gpu-reference
gpu-kit: $(if $(KIT_LACKS),,$(KIT_ALL))
ifneq ($(KIT_LACKS),)
	@echo 'gpu-kit: the kit needs $(KIT_LACKS)' >&2; exit 1
else
	@bench/gpu/pack kit --build '$(BUILD)' --version '$(VERSION)' --nvcc '$(NVCC)' $(KIT_ALL:$(KIT)/%=%)
endif

# ---- gpu-data and gpu-reference: what is carried along with it -------------------------------------------------------
gpu-data:
	@bench/gpu/pack data --build '$(BUILD)'

# What takes the CPU minutes is computed before the GPU's time runs: once, until a source of agree changes.
REFERENCE_NETS := resnet8x4 resnet20 wrn-16-2 mobilenetv2_cifar shufflenetv2_cifar
REFERENCE_STEP := $(REFERENCE_NETS:%=$(BUILD)/gpu-reference/step-%.reference)
REFERENCE_CURVE := $(REFERENCE_NETS:%=$(BUILD)/gpu-reference/curve-%.reference)
REFERENCE_SRC := $(addprefix bench/gpu/,agree.c inputs.c inputs.h reference.c reference.h world.c world.h)
define make_reference
@mkdir -p $(@D)
$(call say,AGREE,$@)
$(Q)$(BUILD)/bench/gpu/agree --arch $* $(1) --make $@ > $@.log
endef
$(REFERENCE_STEP): $(BUILD)/gpu-reference/step-%.reference: $(REFERENCE_SRC) | $(BUILD)/bench/gpu/agree
	$(call make_reference,--mode step --batch 32)
$(REFERENCE_CURVE): $(BUILD)/gpu-reference/curve-%.reference: $(REFERENCE_SRC) | $(BUILD)/bench/gpu/agree
	$(call make_reference,--mode curve --batch 64 --steps 200)
gpu-reference: $(REFERENCE_STEP) $(REFERENCE_CURVE)
	@bench/gpu/pack reference --build '$(BUILD)'
