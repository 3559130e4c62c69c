// Floats of one head as whole numbers with one scale: the same numbers on every instruction set.
#pragma once

#include <cstdint>

#include "generic/elementwise.h"
#include "generic/hadamard.h"
#include "layout/kv_cache.h"

namespace baichuan2 {

// Rows are at most this long: a head, or the weights of one block of keys.
constexpr std::int64_t kMaxRow = KvCache::kMaxHeadSize;

// Values become whole numbers of at most `most`, as floats; `count` is a multiple of 8.
// Returns what to multiply them with. Values that are all next to nothing become zeros.
template <class Simd>
BAICHUAN2_INLINE float to_whole_numbers(const float* x, std::int64_t count, float most, float* whole) {
    constexpr float kSmallest = 1e-30f;  // most / kSmallest must be finite
    auto size = Simd::all(0.0f);
    for (std::int64_t i = 0; i < count; i += 8) {
        const auto v = Simd::load(x + i);
        size = Simd::max(size, Simd::max(v, Simd::sub(Simd::all(0.0f), v)));
    }
    const float largest = Simd::largest(size);
    const bool is_zero = largest < kSmallest;
    const auto inverse = Simd::all(is_zero ? 0.0f : most / largest);
    for (std::int64_t i = 0; i < count; i += 8) {
        Simd::store(whole + i, Simd::round(Simd::mul(Simd::load(x + i), inverse)));
    }
    return is_zero ? 0.0f : largest / most;
}

template <class Simd>
BAICHUAN2_INLINE void limit(const float* x, std::int64_t count, float most, float* out) {
    const auto high = Simd::all(most), low = Simd::all(-most);
    for (std::int64_t i = 0; i < count; i += 8) {
        Simd::store(out + i, Simd::min(Simd::max(Simd::load(x + i), low), high));
    }
}

// Keys and values, transformed: codes around kZeroCode. Numbers beyond float16's range become its ends, as there.
template <class Simd>
float to_int8(const float* x, std::int64_t count, std::uint8_t* codes) {
    float numbers[kMaxRow];
    limit<Simd>(x, count, 65504.0f, numbers);
    hadamard(numbers, count);
    const float scale = to_whole_numbers<Simd>(numbers, count, 127.0f, numbers);
    for (std::int64_t i = 0; i < count; ++i) {
        codes[i] = static_cast<std::uint8_t>(static_cast<int>(numbers[i]) + kZeroCode);
    }
    return scale;
}

}  // namespace baichuan2
