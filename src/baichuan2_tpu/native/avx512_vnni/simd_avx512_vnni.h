// Eight floats as in AVX2, with the 32 registers of AVX-512VL. Include only where the compiler may use that.
//
// Vectors stay at 256 bits: sums keep AVX2's order, so that both sets give the same bits.
#pragma once

#include "avx2/simd_avx2.h"

namespace baichuan2 {

struct Avx512VnniSimd : Avx2Simd {
    // At most 24 sums beside two vectors and a factor.
    static constexpr int kQueries = 12;
    template <int Queries>
    static constexpr int kKeyVectors = Queries > 6 ? 2 : 4;
    template <int Queries>
    static constexpr int kValueVectors = Queries > 6   ? 2
                                         : Queries > 3 ? 4
                                                       : 8;
    static constexpr int kExactTokens = 8;
};

}  // namespace baichuan2
