// Eight floats in an AVX2 register. Include only where the compiler may use AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "float16.h"

namespace baichuan2 {

struct Avx2Simd {
    using Floats = __m256;

    // Sums that are carried side by side: at most 12 of 16 registers, enough to hide the latency of one.
    // Attention takes kQueries at once, and beside Queries of them so many vectors of eight keys, or of eight
    // columns of values.
    static constexpr int kQueries = 6;
    template <int Queries>
    static constexpr int kKeyVectors = Queries > 2 ? 2 : 4;
    template <int Queries>
    static constexpr int kValueVectors = Queries > 2   ? 2
                                         : Queries > 1 ? 4
                                                       : 8;
    // matmul_exact takes so many tokens at once.
    static constexpr int kExactTokens = 4;

    static BAICHUAN2_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
    static BAICHUAN2_INLINE Floats load_half(const std::uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static BAICHUAN2_INLINE Floats load_bits(const std::uint8_t* p, int shift, std::uint32_t mask) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        const __m256i bits = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift));
        return _mm256_cvtepi32_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(mask))));
    }
    static BAICHUAN2_INLINE Floats all(float x) { return _mm256_set1_ps(x); }
    static BAICHUAN2_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static BAICHUAN2_INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
    static BAICHUAN2_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static BAICHUAN2_INLINE Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
    static BAICHUAN2_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static BAICHUAN2_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
    static BAICHUAN2_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
    static BAICHUAN2_INLINE Floats where_greater(Floats a, Floats b, Floats x) {
        return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), x);
    }
    static BAICHUAN2_INLINE Floats round(Floats a) {
        return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static BAICHUAN2_INLINE Floats exp2_whole(Floats a) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    }
    static BAICHUAN2_INLINE void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
    static BAICHUAN2_INLINE void store_half(std::uint16_t* p, Floats a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    }
    static BAICHUAN2_INLINE float sum(Floats a) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(half) + _mm_cvtss_f32(_mm_movehdup_ps(half));
    }
    static BAICHUAN2_INLINE float largest(Floats a) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }
};

}  // namespace baichuan2
