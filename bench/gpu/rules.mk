# The programs behind bench/gpu/run-all that need no CUDA toolkit: C on the backend table, for a GPU through the plugin, or for the CPU.
GPU_PROGRAMS := $(BUILD)/bench/gpu/agree $(BUILD)/bench/gpu/step
$(GPU_PROGRAMS): $(BUILD)/bench/gpu/%: $(BUILD)/bench/gpu/%.o $(BUILD)/bench/gpu/world.o $(BUILD)/libcmkd.a
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ $(LIBS)
AGREE_OBJ    := $(BUILD)/bench/gpu/reference.o $(BUILD)/bench/gpu/inputs.o
$(BUILD)/bench/gpu/agree: $(AGREE_OBJ)
tests-build: $(GPU_PROGRAMS)
-include $(GPU_PROGRAMS:=.d) $(BUILD)/bench/gpu/world.d $(AGREE_OBJ:.o=.d)

# All that `run-all` needs on a machine without our libraries' development files: programs, plugin, and the shared libraries that they load
# from here, but for the C library's own and CUDA's.
.PHONY: gpu-kit
gpu-kit: all $(GPU_PROGRAMS)
	@rm -rf $(BUILD)/gpu-kit; mkdir -p $(BUILD)/gpu-kit/bench/gpu $(BUILD)/gpu-kit/lib
	@cp $(PROGRAMS) $(CUDA_LIB) $(BUILD)/gpu-kit/; cp $(GPU_PROGRAMS) $(BUILD)/gpu-kit/bench/gpu/
	@strip --strip-unneeded $(BUILD)/gpu-kit/cmkd-* $(BUILD)/gpu-kit/bench/gpu/* $(if $(CUDA_LIB),$(BUILD)/gpu-kit/$(notdir $(CUDA_LIB)))
	@ldd $(PROGRAMS) $(CUDA_LIB) $(GPU_PROGRAMS) | awk '$$2 == "=>" && $$3 ~ /^\// && $$1 !~ /^(libc|libm|libdl|librt|libresolv|libpthread|libcuda|libcudart|libcudnn.*|libcublas.*)\.so/ { print $$3 }' | sort -u | xargs -I{} cp -L {} $(BUILD)/gpu-kit/lib/
	@du -sh $(BUILD)/gpu-kit
