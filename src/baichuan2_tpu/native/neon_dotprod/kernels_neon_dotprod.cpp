// The kernels for NEON with the dot products of Armv8.2 (asimddp).
// Compiled with those options: nothing here may run before the processor was asked for them.
#include "generic/generic_kernels.h"
#include "neon/matmul_neon.h"
#include "neon_dotprod/dot_neon_dotprod.h"
#include "neon_dotprod/simd_neon_dotprod.h"

namespace baichuan2 {
namespace {

constexpr Kernels make_kernels() {
    Kernels kernels = generic_kernels<NeonDotprodSimd>("neon_dotprod");
    neon::set_matmul<neon_dotprod::Dots>(kernels);
    return kernels;
}

constexpr Kernels kKernels = make_kernels();

}  // namespace

const Kernels kNeonDotprodKernels = kKernels;

}  // namespace baichuan2
