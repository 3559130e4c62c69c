// A group's products with the dot products of Armv8.2 (Cortex-A76, Neoverse N1, Apple): 16 per instruction.
// Include only where the compiler may use them.
//
// A lane holds one row. A dot product adds 4 columns of 4 rows, times one word of codes, which is a lane of a
// register: 4 codes of one token. A step is 4 columns: two vectors of packed weights.
//
//   4 bits: sdot of a code and an 8-bit activation, |sum| <= 64 * 15 * 127 + 8 * 64 * 127 < 2^18
//   8 bits: activations of 16 bits are a signed high byte and an unsigned low byte:
//           sdot of (code - 128) and high, |sum| <= 64 * 128 * 128 = 2^20,
//           udot of code and low, which ends at sum((code - 128) * low), |sum| <= 64 * 128 * 255 < 2^21,
//           and 256 * the first + the second is sum((code - 128) * x), within 64 * 128 * 32639 < 2^29
//
// A tile is 6 tokens: their 24 sums fit 32 registers beside two vectors of weights and a few of codes.
#pragma once

#include <arm_neon.h>

#include "neon/matmul_neon.h"

namespace baichuan2 {
namespace neon_dotprod {

using neon::Sums;

struct Dots {
    static constexpr int kTileTokens = 6;
    static constexpr int kPieceColumns = 2 * kStepColumns;
    static constexpr bool kSplitsCodes = true;

    template <int Bits, int T>
    static BAICHUAN2_INLINE void dot_group(const std::uint8_t* codes, const std::int8_t* x,
                                           const std::int32_t* starts, Sums<Bits, T>& sums) {
        if constexpr (Bits == 4) {
            dot_nibbles<T>(codes, x, starts, sums);
        } else {
            dot_bytes<T>(codes, x, starts, sums);
        }
    }

private:
    // Steps whose codes fill whole registers for any number of tokens.
    static constexpr int kTurnSteps = 4;

    // One register of codes, of which a step wants a word.
    template <int Word>
    static BAICHUAN2_INLINE int8x16_t load_around(const std::int8_t* x) {
        return vld1q_s8(x + Word / 4 * 16);
    }

    // Load the codes of a full tile anew from here on: GCC would keep them for the next step, and spill.
    template <int T>
    static BAICHUAN2_INLINE void forget_loads(const std::int8_t*& x) {
        if constexpr (T == kTileTokens) __asm__("" : "+r"(x));
    }

    template <int T>
    static BAICHUAN2_INLINE void dot_nibbles(const std::uint8_t* codes, const std::int8_t* x,
                                             const std::int32_t* starts, Sums<4, T>& sums) {
        for (int t = 0; t < T; ++t) {
            for (int v = 0; v < 4; ++v) sums[t][v] = vdupq_n_s32(starts[t]);
        }
        for (int turn = 0; turn < kGroup / kStepColumns / kTurnSteps; ++turn) {
            add_nibbles<T, 0>(codes, x, sums);
            codes += kTurnSteps * kStepBytes;
            x += T * kTurnSteps * kStepColumns;
        }
    }

    // The steps of a turn, from `Step` on.
    template <int T, int Step>
    static BAICHUAN2_INLINE void add_nibbles(const std::uint8_t* codes, const std::int8_t* x,
                                             Sums<4, T>& sums) {
        const uint8x16_t first = vld1q_u8(codes + Step * kStepBytes);
        const uint8x16_t second = vld1q_u8(codes + Step * kStepBytes + 16);
        const uint8x16_t nibbles = vdupq_n_u8(15);
        const uint8x16_t weights[4] = {vandq_u8(first, nibbles), vandq_u8(second, nibbles),
                                       vshrq_n_u8(first, 4), vshrq_n_u8(second, 4)};
        forget_loads<T>(x);
        add_nibble_tokens<T, Step, 0>(weights, x, sums);
        if constexpr (Step + 1 < kTurnSteps) add_nibbles<T, Step + 1>(codes, x, sums);
    }

    template <int T, int Step, int Token>
    static BAICHUAN2_INLINE void add_nibble_tokens(const uint8x16_t (&weights)[4], const std::int8_t* x,
                                                   Sums<4, T>& sums) {
        constexpr int kWord = (Step / 2 * T + Token) * 2 + Step % 2;
        const int8x16_t words = load_around<kWord>(x);
        for (int v = 0; v < 4; ++v) {
            sums[Token][v] =
                vdotq_laneq_s32(sums[Token][v], vreinterpretq_s8_u8(weights[v]), words, kWord % 4);
        }
        if constexpr (Token + 1 < T) add_nibble_tokens<T, Step, Token + 1>(weights, x, sums);
    }

    template <int T>
    static BAICHUAN2_INLINE void dot_bytes(const std::uint8_t* codes, const std::int8_t* x,
                                           const std::int32_t* starts, Sums<8, T>& sums) {
        Sums<8, T> high;
        uint32x4_t low[T][2];
        for (int t = 0; t < T; ++t) {
            for (int v = 0; v < 2; ++v) {
                high[t][v] = vdupq_n_s32(0);
                low[t][v] = vreinterpretq_u32_s32(vdupq_n_s32(starts[t]));
            }
        }
        for (int turn = 0; turn < kGroup / kStepColumns / kTurnSteps; ++turn) {
            add_bytes<T, 0>(codes, x, high, low);
            codes += kTurnSteps * kStepBytes;
            x += T * kTurnSteps * kStepColumns * 2;
        }
        for (int t = 0; t < T; ++t) {
            for (int v = 0; v < 2; ++v) {
                sums[t][v] = vaddq_s32(vshlq_n_s32(high[t][v], 8), vreinterpretq_s32_u32(low[t][v]));
            }
        }
    }

    template <int T, int Step>
    static BAICHUAN2_INLINE void add_bytes(const std::uint8_t* codes, const std::int8_t* x, Sums<8, T>& high,
                                           uint32x4_t (&low)[T][2]) {
        const uint8x16_t weights[2] = {vld1q_u8(codes + Step * kStepBytes),
                                       vld1q_u8(codes + Step * kStepBytes + 16)};
        const uint8x16_t bias = vdupq_n_u8(128);
        const int8x16_t biased[2] = {vreinterpretq_s8_u8(veorq_u8(weights[0], bias)),
                                     vreinterpretq_s8_u8(veorq_u8(weights[1], bias))};
        forget_loads<T>(x);
        add_byte_tokens<T, Step, 0>(weights, biased, x, high, low);
        if constexpr (Step + 1 < kTurnSteps) add_bytes<T, Step + 1>(codes, x, high, low);
    }

    template <int T, int Step, int Token>
    static BAICHUAN2_INLINE void add_byte_tokens(const uint8x16_t (&weights)[2], const int8x16_t (&biased)[2],
                                                 const std::int8_t* x, Sums<8, T>& high,
                                                 uint32x4_t (&low)[T][2]) {
        constexpr int kHigh = (Step / 2 * 2 * T + Token) * 2 + Step % 2, kLow = kHigh + 2 * T;
        const int8x16_t high_words = load_around<kHigh>(x);
        const uint8x16_t low_words = vreinterpretq_u8_s8(load_around<kLow>(x));
        for (int v = 0; v < 2; ++v) {
            high[Token][v] = vdotq_laneq_s32(high[Token][v], biased[v], high_words, kHigh % 4);
            low[Token][v] = vdotq_laneq_u32(low[Token][v], weights[v], low_words, kLow % 4);
        }
        if constexpr (Token + 1 < T) add_byte_tokens<T, Step, Token + 1>(weights, biased, x, high, low);
    }
};

}  // namespace neon_dotprod
}  // namespace baichuan2
