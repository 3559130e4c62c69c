// The kernels for AVX-VNNI (beside AVX2, FMA and F16C).
// Compiled with those options: nothing here may run before the processor was asked for them.
#include "avx_vnni/activations_avx_vnni.h"
#include "avx_vnni/matmul_avx_vnni.h"
#include "avx_vnni/simd_avx_vnni.h"
#include "generic/generic_kernels.h"

namespace baichuan2 {
namespace {

constexpr Kernels make_kernels() {
    Kernels kernels = generic_kernels<AvxVnniSimd>("avx_vnni");
    kernels.activations = avx_vnni::kActivations;
    kernels.matmul_blocks = avx_vnni::kBlocks;
    kernels.matmul_scratch_bytes = [](std::int64_t) -> std::int64_t { return 0; };
    kernels.matmul = avx_vnni::matmul;
    kernels.multiply_rounds = avx_vnni::multiply_rounds;
    return kernels;
}

constexpr Kernels kKernels = make_kernels();

}  // namespace

const Kernels kAvxVnniKernels = kKernels;

}  // namespace baichuan2
