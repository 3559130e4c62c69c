// The kernels for AVX-512 with VNNI (F, BW, VL, VNNI, beside AVX2, FMA and F16C).
// Compiled with those options: nothing here may run before the processor was asked for them.
#include "avx512_vnni/activations_avx512_vnni.h"
#include "avx512_vnni/int8_dots_avx512_vnni.h"
#include "avx512_vnni/matmul_avx512_vnni.h"
#include "avx512_vnni/simd_avx512_vnni.h"
#include "generic/generic_kernels.h"

namespace baichuan2 {
namespace {

constexpr Kernels make_kernels() {
    Kernels kernels = generic_kernels<Avx512VnniSimd, Avx512VnniDots>("avx512_vnni");
    kernels.activations = avx512_vnni::kActivations;
    kernels.matmul_blocks = avx512_vnni::kStrips;
    kernels.matmul_scratch_bytes = [](std::int64_t) -> std::int64_t { return 0; };
    kernels.matmul = avx512_vnni::matmul;
    kernels.multiply_rounds = avx512_vnni::multiply_rounds;
    return kernels;
}

constexpr Kernels kKernels = make_kernels();

}  // namespace

const Kernels kAvx512VnniKernels = kKernels;

}  // namespace baichuan2
