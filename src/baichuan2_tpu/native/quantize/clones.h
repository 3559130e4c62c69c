// What the searches share: code that is compiled twice, and rounding that is the same bits everywhere.
#pragma once

#include "float16.h"

// The AVX2 clone only widens the same lanes; AVX2 alone has no FMA, so results are equal bit for bit.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define BAICHUAN2_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define BAICHUAN2_CLONES
#endif

namespace baichuan2 {

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to even

BAICHUAN2_INLINE float round_even(float value) { return (value + kRounder) - kRounder; }

}  // namespace baichuan2
