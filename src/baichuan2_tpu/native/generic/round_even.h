// Rounding that is the same bits with every instruction set.
#pragma once

#include "float16.h"

namespace baichuan2 {

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to even, for numbers up to 2^22

BAICHUAN2_INLINE float round_even(float value) { return (value + kRounder) - kRounder; }

}  // namespace baichuan2
