# The CUDA kernels on the host: kernels/cuda/*.cu compiled by g++ against the SIMT emulation in tests/simt, linked into test programs with
# the same cmocka tests. Needs no CUDA toolkit. AddressSanitizer and UBSan are always on here: they are half of what the emulation checks.
# The emulation's own two files are left out of it, for speed; they tell AddressSanitizer of each switch of stacks.
comma     := ,
SIMT_SAN  := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SIMT_HAVE := $(if $(wildcard $(BUILD)/simt.found),1,$(shell mkdir -p $(BUILD); printf 'int main() { return 0; }' | $(CXX) -x c++ $(SIMT_SAN) -o /dev/null - 2> /dev/null && touch $(BUILD)/simt.found && echo 1))
ifeq ($(SIMT_HAVE),1)
SIMT_OUT   := $(BUILD)/simt
SIMT_FLAGS := -std=c++17 -O1 -g -fPIC -fno-strict-aliasing $(SIMT_SAN) -ffp-contract=off -fno-exceptions -fno-rtti -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-function -DCMKD_SIMT -I. -Iinclude
SIMT_OBJ   := $(patsubst %,$(SIMT_OUT)/%.o,$(CU_SRC) tests/simt/simt.cpp tests/simt/fiber.cpp tests/simt/runtime.cpp)
SIMT_CU    := $(patsubst tests/simt/%,%,$(wildcard tests/simt/test_*.cu))
SIMT_C     := $(patsubst tests/simt/%,%,$(wildcard tests/simt/test_*.c))
SIMT_TESTS := $(SIMT_C:%.c=$(BUILD)/tests/%)
TESTS      += $(SIMT_TESTS)

$(SIMT_OUT)/%.cu.o: %.cu tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,EMULATE,$<)
	$(Q)$(CXX) $(SIMT_FLAGS) -MMD -MP -x c++ -c -o $@ $<
$(SIMT_OUT)/%.c.o: %.c tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(ALL_CFLAGS) $(SIMT_SAN) -DCMKD_SIMT -MMD -MP -c -o $@ $<
$(SIMT_OUT)/%.cpp.o: %.cpp tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(Q)$(CXX) $(filter-out $(SIMT_SAN) -O1,$(SIMT_FLAGS)) -O2 -DSIMT_ASAN -MMD -MP -c -o $@ $<
# A test is cmocka in C (NAME.c); kernels made for it lie beside it (NAME.cu). The test_cuda_* run again on a real device (test_device_*),
# where each is skipped by name when there is none.
.SECONDEXPANSION:
$(SIMT_TESTS): $(BUILD)/tests/%: $(BUILD)/tests/simt/%.o $(BUILD)/tests/simt/gpu.o $$(addprefix $(SIMT_OUT)/,$$(addsuffix .o,$$(wildcard tests/simt/$$*.cu))) $(SIMT_OBJ) $(TEST_SUPPORT) $(ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(CXX) $(OPENMP) $(SIMT_SAN) $(LDFLAGS) -rdynamic -o $@ $^ -lcmocka $(LIBS)
tests-build: $(SIMT_TESTS)

# The whole plugin, emulated and without sanitizers: programs under test open it through $CMKD_CUDA_PLUGIN and believe in a GPU.
SIMT_PLUGIN     := $(SIMT_OUT)/libcmkd-cuda.so
SIMT_PLAIN_OBJ  := $(SIMT_OBJ:$(SIMT_OUT)/%=$(SIMT_OUT)/plain/%)
SIMT_PLAIN_FLAGS := $(filter-out $(SIMT_SAN) -O1,$(SIMT_FLAGS)) -O2 -Wno-unused-variable
$(SIMT_OUT)/plain/%.cu.o: %.cu tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,EMULATE,$<)
	$(Q)$(CXX) $(SIMT_PLAIN_FLAGS) -MMD -MP -x c++ -c -o $@ $<
$(SIMT_OUT)/plain/%.cpp.o: %.cpp tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(Q)$(CXX) $(SIMT_PLAIN_FLAGS) -MMD -MP -c -o $@ $<
$(SIMT_OUT)/plain/%.c.o: %.c tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(filter-out $(SAN),$(ALL_CFLAGS)) -DCMKD_SIMT -MMD -MP -c -o $@ $<
$(SIMT_PLUGIN): $(SIMT_PLAIN_OBJ) $(BUILD)/libcmkd.a
	$(call say,LINK,$@)
	$(Q)$(CXX) -shared $(OPENMP) $(if $(SAN),-Wl$(comma)--unresolved-symbols=ignore-all) $(LDFLAGS) -Wl,--exclude-libs,ALL -o $@ $^ $(LIBS)
tests-build: $(SIMT_PLUGIN)
-include $(SIMT_PLAIN_OBJ:.o=.d)

# check_vectors evaluates the emulated kernels too
$(BUILD)/tests/check_vectors: $(BUILD)/tests/simt/vectors.o $(SIMT_OBJ)
$(BUILD)/tests/check_vectors: private LDFLAGS += $(SIMT_SAN)
$(BUILD)/tests/check_vectors: private LIBS := $(BUILD)/libcmkd.a $(LIBS) -lstdc++

-include $(SIMT_OBJ:.o=.d) $(SIMT_C:%.c=$(BUILD)/tests/simt/%.d) $(SIMT_CU:%=$(SIMT_OUT)/tests/simt/%.d)
else
.PHONY: simt-missing
tests-build: simt-missing
simt-missing:
	@echo 'SKIP: the emulated CUDA tests need a C++ compiler with AddressSanitizer (g++, libasan)'
endif

# ---- the same tests on a GPU ---------------------------------------------------------------------------------------------
DEVICE_C     := $(patsubst tests/simt/test_cuda_%.c,%,$(wildcard tests/simt/test_cuda_*.c))
DEVICE_TESTS := $(DEVICE_C:%=$(BUILD)/tests/test_device_%)
TESTS        += $(DEVICE_TESTS)
$(BUILD)/device/%.o: %.c $(CONFIG)
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(ALL_CFLAGS) -DON_DEVICE -MMD -MP -c -o $@ $<
$(DEVICE_TESTS): $(BUILD)/tests/test_device_%: $(BUILD)/device/tests/simt/test_cuda_%.o $(BUILD)/device/tests/simt/gpu.o $(TEST_SUPPORT) $(ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ -lcmocka $(LIBS)
tests-build: $(DEVICE_TESTS)
$(BUILD)/tests/check_vectors: $(BUILD)/device/tests/simt/vectors.o
-include $(DEVICE_C:%=$(BUILD)/device/tests/simt/test_cuda_%.d) $(BUILD)/device/tests/simt/vectors.d $(BUILD)/device/tests/simt/gpu.d

# ---- device benchmarks: built and run by hand, `make bench-gpu` ------------------------------------------------------------
GPU_BENCH := $(if $(HAVE_CUDA),$(patsubst %.cu,$(BUILD)/%,$(wildcard bench/gpu/*.cu)))
.PHONY: bench-gpu
$(GPU_BENCH): $(BUILD)/%: $(BUILD)/%.cu.o $(CU_OBJ) $(BUILD)/libcmkd.a
	$(call say,LINK,$@)
	$(Q)$(NVCC) $(GENCODE) -o $@ $^ -lgomp $(LIBS:-pthread=-lpthread)
-include $(GPU_BENCH:=.cu.d)
bench-gpu: $(GPU_BENCH)
	@if [ -z "$(GPU_BENCH)" ]; then echo 'SKIP: no CUDA toolkit here'; fi
	@for b in $(GPU_BENCH); do $$b || exit 1; done
