// The kernels for AVX2 with FMA and F16C.
// Compiled with those options: nothing here may run before the processor was asked for them.
#include "avx2/activations_avx2.h"
#include "avx2/int8_dots_avx2.h"
#include "avx2/matmul_avx2.h"
#include "avx2/simd_avx2.h"
#include "generic/generic_kernels.h"

namespace baichuan2 {
namespace {

constexpr Kernels make_kernels() {
    Kernels kernels = generic_kernels<Avx2Simd, Avx2Dots>("avx2");
    kernels.activations = avx2::kActivations;
    kernels.matmul_blocks = avx2::kPanelBlocks;
    kernels.matmul_scratch_bytes = avx2::scratch_bytes;
    kernels.matmul = avx2::matmul;
    kernels.multiply_rounds = avx2::multiply_rounds;
    return kernels;
}

constexpr Kernels kKernels = make_kernels();

}  // namespace

const Kernels kAvx2Kernels = kKernels;

}  // namespace baichuan2
