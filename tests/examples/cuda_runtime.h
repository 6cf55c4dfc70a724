/* Stands for the CUDA toolkit's header where docs/examples/loss_cuda.c is built for the emulated device. */
#include "../simt/runtime.h"
