// The kernels for NEON with the 8-bit matrix products of Armv8.6 (i8mm, beside asimddp).
// Compiled with those options: nothing here may run before the processor was asked for them.
#include "generic/generic_kernels.h"
#include "neon/matmul_neon.h"
#include "neon_i8mm/dot_neon_i8mm.h"
#include "neon_i8mm/simd_neon_i8mm.h"

namespace baichuan2 {
namespace {

constexpr Kernels make_kernels() {
    Kernels kernels = generic_kernels<NeonI8mmSimd>("neon_i8mm");
    neon::set_matmul<neon_i8mm::Dots>(kernels);
    return kernels;
}

constexpr Kernels kKernels = make_kernels();

}  // namespace

const Kernels kNeonI8mmKernels = kKernels;

}  // namespace baichuan2
