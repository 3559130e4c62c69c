// Eight floats as in AVX2. Include only where the compiler may use AVX2, FMA and F16C.
#pragma once

#include "avx2/simd_avx2.h"

namespace baichuan2 {

struct AvxVnniSimd : Avx2Simd {};

}  // namespace baichuan2
