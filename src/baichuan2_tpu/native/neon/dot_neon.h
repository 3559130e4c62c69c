// A group's products with the widening multiplications of Armv8.0 (Cortex-A53, A72): 8 or 4 per instruction.
//
// A lane holds one row and one of four columns, so that no product needs a shuffle; the four are added up at
// the end of a group. A step is 4 columns: two vectors of packed weights, whose columns meet one word of
// codes that is repeated for every row.
//
//   4 bits: smlal, 8 products of a code and an 8-bit activation, summed in 16 bits:
//           16 per lane and group, |sum| <= 16 * 15 * 127 = 30480 < 2^15
//   8 bits: smlal, 4 products of a widened code and a 16-bit activation, summed in 32 bits:
//           |sum| of a row <= 64 * 255 * 32639 + 128 * 64 * 32639 < 2^30
//
// A tile is 3 tokens: their 24 sums fit 32 registers beside four vectors of weights and one of codes.
#pragma once

#include <arm_neon.h>

#include "neon/matmul_neon.h"

namespace baichuan2 {
namespace neon {

struct Dots {
    static constexpr int kTileTokens = 3;
    static constexpr int kPieceColumns = kStepColumns;
    static constexpr bool kSplitsCodes = false;

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
    template <int T>
    static BAICHUAN2_INLINE void dot_nibbles(const std::uint8_t* codes, const std::int8_t* x,
                                             const std::int32_t* starts, Sums<4, T>& sums) {
        int16x8_t lanes[T][8];  // of two rows each
        for (int t = 0; t < T; ++t) {
            for (int i = 0; i < 8; ++i) lanes[t][i] = vdupq_n_s16(0);
        }
        for (int step = 0; step < kGroup / kStepColumns; ++step) {
            const uint8x16_t first = vld1q_u8(codes + step * kStepBytes);
            const uint8x16_t second = vld1q_u8(codes + step * kStepBytes + 16);
            const uint8x16_t nibbles = vdupq_n_u8(15);
            const uint8x16_t weights[4] = {vandq_u8(first, nibbles), vandq_u8(second, nibbles),
                                           vshrq_n_u8(first, 4), vshrq_n_u8(second, 4)};
            for (int t = 0; t < T; ++t) {
                const int8x16_t word = repeat_word(x + (step * T + t) * 4);
                for (int v = 0; v < 4; ++v) {
                    const int8x16_t weight = vreinterpretq_s8_u8(weights[v]);
                    lanes[t][2 * v] = vmlal_s8(lanes[t][2 * v], vget_low_s8(weight), vget_low_s8(word));
                    lanes[t][2 * v + 1] = vmlal_high_s8(lanes[t][2 * v + 1], weight, word);
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            for (int v = 0; v < 4; ++v) {
                const int32x4_t pairs[2] = {vpaddlq_s16(lanes[t][2 * v]), vpaddlq_s16(lanes[t][2 * v + 1])};
                sums[t][v] = vaddq_s32(vpaddq_s32(pairs[0], pairs[1]), vdupq_n_s32(starts[t]));
            }
        }
    }

    template <int T>
    static BAICHUAN2_INLINE void dot_bytes(const std::uint8_t* codes, const std::int8_t* x,
                                           const std::int32_t* starts, Sums<8, T>& sums) {
        int32x4_t lanes[T][8];  // of one row each
        for (int t = 0; t < T; ++t) {
            for (int i = 0; i < 8; ++i) lanes[t][i] = vdupq_n_s32(0);
        }
        for (int step = 0; step < kGroup / kStepColumns; ++step) {
            const uint8x16_t first = vld1q_u8(codes + step * kStepBytes);
            const uint8x16_t second = vld1q_u8(codes + step * kStepBytes + 16);
            const uint16x8_t weights[4] = {vmovl_u8(vget_low_u8(first)), vmovl_high_u8(first),
                                           vmovl_u8(vget_low_u8(second)), vmovl_high_u8(second)};
            for (int t = 0; t < T; ++t) {
                const int16x8_t word = repeat_wide_word(x + (step * T + t) * 8);
                for (int v = 0; v < 4; ++v) {
                    const int16x8_t weight = vreinterpretq_s16_u16(weights[v]);
                    lanes[t][2 * v] = vmlal_s16(lanes[t][2 * v], vget_low_s16(weight), vget_low_s16(word));
                    lanes[t][2 * v + 1] = vmlal_high_s16(lanes[t][2 * v + 1], weight, word);
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            for (int v = 0; v < 2; ++v) {
                const int32x4_t* rows = lanes[t] + 4 * v;
                const int32x4_t pairs[2] = {vpaddq_s32(rows[0], rows[1]), vpaddq_s32(rows[2], rows[3])};
                sums[t][v] = vaddq_s32(vpaddq_s32(pairs[0], pairs[1]), vdupq_n_s32(starts[t]));
            }
        }
    }

    static BAICHUAN2_INLINE int8x16_t repeat_word(const std::int8_t* x) {
        return vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const std::int32_t*>(x)));
    }
    static BAICHUAN2_INLINE int16x8_t repeat_wide_word(const std::int8_t* x) {
        return vreinterpretq_s16_s64(vld1q_dup_s64(reinterpret_cast<const std::int64_t*>(x)));
    }
};

}  // namespace neon
}  // namespace baichuan2
