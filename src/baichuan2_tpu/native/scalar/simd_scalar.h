// Eight floats in plain C++: the definition of every other simd_X.h, and the way to run anywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "float16.h"

namespace baichuan2 {

struct ScalarSimd {
    struct Floats {
        float lane[8];
    };

    // Sums that are carried side by side: as in AVX2, whose definition this is.
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

#define BAICHUAN2_LANES(expression)                         \
    Floats out;                                             \
    for (int i = 0; i < 8; ++i) out.lane[i] = (expression); \
    return out

    static BAICHUAN2_INLINE Floats load(const float* p) { BAICHUAN2_LANES(p[i]); }
    static BAICHUAN2_INLINE Floats load_half(const std::uint16_t* p) { BAICHUAN2_LANES(half_to_float(p[i])); }
    // The bits [shift, shift + width of mask) of eight 32-bit words
    static BAICHUAN2_INLINE Floats load_bits(const std::uint8_t* p, int shift, std::uint32_t mask) {
        std::uint32_t words[8];
        std::memcpy(words, p, sizeof words);
        BAICHUAN2_LANES(static_cast<float>((words[i] >> shift) & mask));
    }
    static BAICHUAN2_INLINE Floats all(float x) { BAICHUAN2_LANES(x); }
    static BAICHUAN2_INLINE Floats add(Floats a, Floats b) { BAICHUAN2_LANES(a.lane[i] + b.lane[i]); }
    static BAICHUAN2_INLINE Floats sub(Floats a, Floats b) { BAICHUAN2_LANES(a.lane[i] - b.lane[i]); }
    static BAICHUAN2_INLINE Floats mul(Floats a, Floats b) { BAICHUAN2_LANES(a.lane[i] * b.lane[i]); }
    static BAICHUAN2_INLINE Floats div(Floats a, Floats b) { BAICHUAN2_LANES(a.lane[i] / b.lane[i]); }
    static BAICHUAN2_INLINE Floats fma(Floats a, Floats b, Floats c) {
        BAICHUAN2_LANES(a.lane[i] * b.lane[i] + c.lane[i]);
    }
    // Where a is not a number, b: as the x86 instruction.
    static BAICHUAN2_INLINE Floats max(Floats a, Floats b) {
        BAICHUAN2_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
    }
    static BAICHUAN2_INLINE Floats min(Floats a, Floats b) {
        BAICHUAN2_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
    }
    static BAICHUAN2_INLINE Floats where_greater(Floats a, Floats b, Floats x) {
        BAICHUAN2_LANES(a.lane[i] > b.lane[i] ? x.lane[i] : 0.0f);
    }
    static BAICHUAN2_INLINE Floats round(Floats a) { BAICHUAN2_LANES(std::nearbyintf(a.lane[i])); }
    // 2 to the power of whole numbers within the range of float exponents
    static BAICHUAN2_INLINE Floats exp2_whole(Floats a) {
        Floats out;
        for (int i = 0; i < 8; ++i) {
            const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<int>(a.lane[i]) + 127) << 23;
            std::memcpy(&out.lane[i], &bits, 4);
        }
        return out;
    }
#undef BAICHUAN2_LANES
    static BAICHUAN2_INLINE void store(float* p, Floats a) { std::memcpy(p, a.lane, sizeof a.lane); }
    static BAICHUAN2_INLINE void store_half(std::uint16_t* p, Floats a) {
        for (int i = 0; i < 8; ++i) p[i] = float_to_half(a.lane[i]);
    }
    static BAICHUAN2_INLINE float sum(Floats a) {
        const float* x = a.lane;
        return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
    }
    static BAICHUAN2_INLINE float largest(Floats a) {
        float most = a.lane[0];
        for (int i = 1; i < 8; ++i) most = a.lane[i] > most ? a.lane[i] : most;
        return most;
    }
};

}  // namespace baichuan2
