// A group's products with the 8-bit matrix products of Armv8.6 (Neoverse V1 and later): 32 per instruction.
// Include only where the compiler may use them.
//
// A register of weights is 8 columns of 2 rows, one of codes 8 columns of 2 tokens, and one of sums
// [row 0: token 0, token 1][row 1: token 0, token 1]. Two steps of packed weights, zipped by words, make 8
// columns of 2 rows. Formats and bounds are those of neon_dotprod, and so is the code for a single token. The
// last of an odd number of tokens makes a pair with zeros.
//
// A tile is 6 tokens: their 24 sums fit 32 registers beside two vectors of weights and three of codes.
#pragma once

#include <arm_neon.h>

#include "neon_dotprod/dot_neon_dotprod.h"

namespace baichuan2 {
namespace neon_i8mm {

using neon::Sums;

struct Dots {
    static constexpr int kTileTokens = neon_dotprod::Dots::kTileTokens;
    static constexpr int kPieceColumns = neon_dotprod::Dots::kPieceColumns;
    static constexpr bool kSplitsCodes = neon_dotprod::Dots::kSplitsCodes;

    template <int Bits, int T>
    static BAICHUAN2_INLINE void dot_group(const std::uint8_t* codes, const std::int8_t* x,
                                           const std::int32_t* starts, Sums<Bits, T>& sums) {
        if constexpr (T == 1) {
            neon_dotprod::Dots::dot_group<Bits, T>(codes, x, starts, sums);
        } else if constexpr (Bits == 4) {
            dot_nibbles<T>(codes, x, starts, sums);
        } else {
            dot_bytes<T>(codes, x, starts, sums);
        }
    }

private:
    static constexpr int kPieces = kGroup / kPieceColumns;
    template <int T>
    static constexpr int kPairs = (T + 1) / 2;

    // Codes of a pair of tokens.
    template <int T>
    static BAICHUAN2_INLINE int8x16_t load_pair(const std::int8_t* x, int pair) {
        const std::int8_t* from = x + pair * 2 * kPieceColumns;
        if (2 * pair + 1 < T) return vld1q_s8(from);
        return vcombine_s8(vld1_s8(from), vdup_n_s8(0));
    }

    template <int T>
    static BAICHUAN2_INLINE int32x4_t start_pair(const std::int32_t* starts, int pair) {
        const std::int32_t* from = starts + pair * 2;
        if (2 * pair + 1 == T) return vdupq_n_s32(from[0]);
        const int32x2_t both = vld1_s32(from);
        return vcombine_s32(both, both);
    }

    // Row pairs `pair` and `pair + 1` of a piece, packed: words 0 and 1, or 2 and 3, of two steps.
    static BAICHUAN2_INLINE uint8x16_t zip_rows(const std::uint8_t* codes, int pair) {
        const std::uint8_t* from = codes + pair / 2 * 16;
        const uint32x4_t first = vreinterpretq_u32_u8(vld1q_u8(from));
        const uint32x4_t second = vreinterpretq_u32_u8(vld1q_u8(from + kStepBytes));
        return vreinterpretq_u8_u32(pair % 2 == 0 ? vzip1q_u32(first, second) : vzip2q_u32(first, second));
    }

    // Four rows of a pair of tokens, from two row pairs.
    template <int Bits, int T>
    static BAICHUAN2_INLINE void store_pair(int32x4_t first, int32x4_t second, int pair, int v,
                                            Sums<Bits, T>& sums) {
        sums[2 * pair][v] = vuzp1q_s32(first, second);
        if (2 * pair + 1 < T) sums[2 * pair + 1][v] = vuzp2q_s32(first, second);
    }

    template <int T>
    static BAICHUAN2_INLINE void dot_nibbles(const std::uint8_t* codes, const std::int8_t* x,
                                             const std::int32_t* starts, Sums<4, T>& sums) {
        int32x4_t pairs[kPairs<T>][8];
        for (int p = 0; p < kPairs<T>; ++p) {
            for (int i = 0; i < 8; ++i) pairs[p][i] = start_pair<T>(starts, p);
        }
        for (int piece = 0; piece < kPieces; ++piece) {
            for (int i = 0; i < 4; ++i) {
                const uint8x16_t packed = zip_rows(codes, i);
                const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
                const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
                for (int p = 0; p < kPairs<T>; ++p) {
                    const int8x16_t tokens = load_pair<T>(x, p);
                    pairs[p][i] = vmmlaq_s32(pairs[p][i], low, tokens);
                    pairs[p][4 + i] = vmmlaq_s32(pairs[p][4 + i], high, tokens);
                }
            }
            codes += 2 * kStepBytes;
            x += T * kPieceColumns;
        }
        for (int p = 0; p < kPairs<T>; ++p) {
            for (int v = 0; v < 4; ++v) {
                store_pair<4, T>(pairs[p][2 * v], pairs[p][2 * v + 1], p, v, sums);
            }
        }
    }

    template <int T>
    static BAICHUAN2_INLINE void dot_bytes(const std::uint8_t* codes, const std::int8_t* x,
                                           const std::int32_t* starts, Sums<8, T>& sums) {
        int32x4_t high[kPairs<T>][4];
        uint32x4_t low[kPairs<T>][4];
        for (int p = 0; p < kPairs<T>; ++p) {
            for (int i = 0; i < 4; ++i) {
                high[p][i] = vdupq_n_s32(0);
                low[p][i] = vreinterpretq_u32_s32(start_pair<T>(starts, p));
            }
        }
        for (int piece = 0; piece < kPieces; ++piece) {
            for (int i = 0; i < 4; ++i) {
                const uint8x16_t weights = zip_rows(codes, i);
                const int8x16_t biased = vreinterpretq_s8_u8(veorq_u8(weights, vdupq_n_u8(128)));
                for (int p = 0; p < kPairs<T>; ++p) {
                    const uint8x16_t low_codes = vreinterpretq_u8_s8(load_pair<T>(x + T * kPieceColumns, p));
                    high[p][i] = vmmlaq_s32(high[p][i], biased, load_pair<T>(x, p));
                    low[p][i] = vmmlaq_u32(low[p][i], weights, low_codes);
                }
            }
            codes += 2 * kStepBytes;
            x += T * kPieceColumns * 2;
        }
        for (int p = 0; p < kPairs<T>; ++p) {
            int32x4_t both[4];
            for (int i = 0; i < 4; ++i) {
                both[i] = vaddq_s32(vshlq_n_s32(high[p][i], 8), vreinterpretq_s32_u32(low[p][i]));
            }
            for (int v = 0; v < 2; ++v) store_pair<8, T>(both[2 * v], both[2 * v + 1], p, v, sums);
        }
    }
};

}  // namespace neon_i8mm
}  // namespace baichuan2
