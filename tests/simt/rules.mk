# The CUDA kernels on the host: kernels/cuda/*.cu compiled by g++ against the SIMT emulation in tests/simt, linked into test programs with
# the same cmocka tests. Needs no CUDA toolkit. AddressSanitizer and UBSan are always on here: they are half of what the emulation checks.
# The emulation's own two files are left out of it, for speed; they tell AddressSanitizer of each switch of stacks.
SIMT_SAN  := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SIMT_HAVE := $(shell printf 'int main() { return 0; }' | $(CXX) -x c++ $(SIMT_SAN) -o /dev/null - 2> /dev/null && echo 1)
ifeq ($(SIMT_HAVE),1)
SIMT_OUT   := $(BUILD)/simt
SIMT_FLAGS := -std=c++17 -O1 -g $(SIMT_SAN) -ffp-contract=off -fno-exceptions -fno-rtti -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-function -Wno-unused-parameter -DCMKD_SIMT -I. -Iinclude
SIMT_OBJ   := $(patsubst %,$(SIMT_OUT)/%.o,$(wildcard kernels/cuda/*.cu) tests/simt/simt.cpp tests/simt/fiber.cpp)
SIMT_CU    := $(patsubst tests/simt/%,%,$(wildcard tests/simt/test_*.cu))
SIMT_C     := $(patsubst tests/simt/%,%,$(wildcard tests/simt/test_*.c))
SIMT_TESTS := $(SIMT_C:%.c=$(BUILD)/tests/%)
TESTS      += $(SIMT_TESTS)

$(SIMT_OUT)/%.cu.o: %.cu tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,EMULATE,$<)
	$(Q)$(CXX) $(SIMT_FLAGS) -MMD -MP -x c++ -c -o $@ $<
$(SIMT_OUT)/%.cpp.o: %.cpp tests/simt/rules.mk
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(Q)$(CXX) $(filter-out $(SIMT_SAN) -O1,$(SIMT_FLAGS)) -O2 -DSIMT_ASAN -MMD -MP -c -o $@ $<
# A test is cmocka in C (NAME.c); kernels made for it lie beside it (NAME.cu).
.SECONDEXPANSION:
$(SIMT_TESTS): $(BUILD)/tests/%: $(BUILD)/tests/simt/%.o $$(if $$(wildcard tests/simt/%.cu),$(SIMT_OUT)/tests/simt/%.cu.o) $(SIMT_OBJ) $(TEST_SUPPORT) $(BUILD)/libcmkd.a
	$(call say,LINK,$@)
	$(Q)$(CXX) -fopenmp $(SIMT_SAN) -o $@ $^ -lcmocka $(LIBS)
tests-build: $(SIMT_TESTS)

-include $(SIMT_OBJ:.o=.d) $(SIMT_C:%.c=$(BUILD)/tests/simt/%.d) $(SIMT_CU:%=$(SIMT_OUT)/tests/simt/%.d)
endif
