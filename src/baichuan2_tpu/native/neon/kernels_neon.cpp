// The kernels for every Armv8 processor: nothing beyond Armv8.0 is used.
#include "generic/generic_kernels.h"
#include "neon/dot_neon.h"
#include "neon/matmul_neon.h"
#include "neon/simd_neon.h"

namespace baichuan2 {
namespace {

constexpr Kernels make_kernels() {
    Kernels kernels = generic_kernels<NeonSimd>("neon");
    neon::set_matmul<neon::Dots>(kernels);
    return kernels;
}

constexpr Kernels kKernels = make_kernels();

}  // namespace

const Kernels kNeonKernels = kKernels;

}  // namespace baichuan2
