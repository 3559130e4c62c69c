// Quantised activations as the AVX-VNNI kernels read them.
//
// A tile is up to 6 tokens: their 12 sums fit 16 registers beside two vectors of weights and one of
// activations. A dot product takes a word of 32 bits, the int8 codes of 4 columns, broadcast to all rows. In a
// tile of T tokens:
//
//   words    int8  [4 columns][T][columns 0, 1, 2, 3]   the codes of narrow groups, the low bytes of wide ones
//   scales   float [group][T]
//   offsets  float [group][T]      -sum(codes): what the zero points multiply
//   starts   int32 [group][T]      where a sum starts, so that it ends at sum((w - bias) * x):
//                                  -8 * sum(codes) beside 4-bit weights, -128 * sum(codes) beside 8-bit
//                                  weights
// and beside 8-bit weights:
//   highs    int8  [group][T][64]  the high bytes of wide groups, otherwise not written
//   wide     int32 [group][T]      1 where the group is wide
#pragma once

#include <immintrin.h>

#include <cstring>

#include "avx2/activations_avx2.h"
#include "layout/activations.h"

namespace baichuan2 {
namespace avx_vnni {

constexpr int kTileTokens = 6;
constexpr std::int64_t kGroupWords = kGroup / 4;

// A tile's arrays from one of its lanes on; the next group or word of a lane is `stride` tokens further.
struct TileArrays {
    std::int32_t* words;
    std::int32_t* highs;
    std::int32_t* wide;
    float* scales;
    float* offsets;
    std::int32_t* starts;
    std::int64_t stride;
};

BAICHUAN2_INLINE TileArrays open_tile(const ActivationTile& tile, std::int64_t lane = 0) {
    const std::int64_t groups = tile.tokens * tile.groups;
    const std::int64_t wide_groups = tile.weight_bits == 4 ? 0 : groups;
    auto* words = reinterpret_cast<std::int32_t*>(tile.data);
    std::int32_t* highs = words + groups * kGroupWords;
    std::int32_t* wide = highs + wide_groups * kGroupWords;
    auto* scales = reinterpret_cast<float*>(wide + wide_groups);
    float* offsets = scales + groups;
    auto* starts = reinterpret_cast<std::int32_t*>(offsets + groups);
    return {
        words + lane, highs + lane * kGroupWords, wide + lane, scales + lane, offsets + lane, starts + lane,
        tile.tokens};
}

// `out.scales` has the group's largest value.
template <int Bits>
BAICHUAN2_INLINE void quantize_group(const float* x, float wide_limit, const TileArrays& out,
                                     std::int64_t group) {
    const std::int64_t at = group * out.stride;
    const float largest = out.scales[at];
    const avx2::CodeRange range = avx2::choose_range(largest, wide_limit);
    alignas(32) std::int32_t codes[kGroup];
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < kGroup; i += 8) {
        const __m256i eight = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), range.inverse));
        _mm256_store_si256(reinterpret_cast<__m256i*>(codes + i), eight);
        sums = _mm256_add_epi32(sums, eight);
    }
    const bool is_wide = Bits == 8 && largest >= wide_limit;
    std::int8_t lows[kGroup], highs[kGroup];
    for (int i = 0; i < kGroup; ++i) {
        const std::int32_t high = is_wide ? (codes[i] + 128) >> 8 : 0;
        highs[i] = static_cast<std::int8_t>(high);
        lows[i] = static_cast<std::int8_t>(codes[i] - high * 256);
    }
    for (std::int64_t i = 0; i < kGroupWords; ++i) {
        std::memcpy(out.words + (group * kGroupWords + i) * out.stride, lows + i * 4, 4);
    }
    if (Bits == 8) out.wide[at] = is_wide ? 1 : 0;
    if (is_wide) std::memcpy(out.highs + at * kGroupWords, highs, kGroup);
    alignas(32) std::int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
    int sum = 0;
    for (const int lane : lanes) sum += lane;
    out.scales[at] = range.scale;
    out.offsets[at] = static_cast<float>(-sum);
    out.starts[at] = (Bits == 4 ? -8 : -128) * sum;
}

template <int Bits>
BAICHUAN2_INLINE void quantize_columns(const float* x, std::int64_t columns, const ActivationTile& tile,
                                       const TileArrays& out) {
    float rest[kGroup] = {};
    for (std::int64_t i = columns / kGroup * kGroup; i < columns; ++i) rest[i % kGroup] = x[i];
    const auto columns_of = [&](std::int64_t group) {
        return (group + 1) * kGroup <= columns ? x + group * kGroup : rest;
    };
    for (std::int64_t group = 0; group < tile.groups; ++group)
        out.scales[group * out.stride] = avx2::find_largest(columns_of(group));
    const float wide_limit = find_wide_limit(tile, out.scales, out.stride);
    for (std::int64_t group = 0; group < tile.groups; ++group)
        quantize_group<Bits>(columns_of(group), wide_limit, out, group);
}

// Words, scale, offset and start, and beside 8-bit weights high bytes and whether there are any.
inline std::int64_t group_bytes(int weight_bits) {
    return kGroup + 4 + 4 + 4 + (weight_bits == 4 ? 0 : kGroup + 4);
}

inline void quantize(const float* x, std::int64_t columns, const ActivationTile& tile, std::int64_t lane) {
    const TileArrays out = open_tile(tile, lane);
    if (tile.weight_bits == 4) {
        quantize_columns<4>(x, columns, tile, out);
    } else {
        quantize_columns<8>(x, columns, tile, out);
    }
}

inline void read(const ActivationTile& tile, std::int64_t lane, const PlainActivations& out) {
    const TileArrays from = open_tile(tile, lane);
    for (std::int64_t group = 0; group < tile.groups; ++group) {
        out.scales[group] = from.scales[group * from.stride];
        out.offsets[group] = from.offsets[group * from.stride];
    }
    for (std::int64_t column = 0; column < tile.groups * kGroup; ++column) {
        const std::int64_t word = column / 4, group = column / kGroup;
        std::int8_t low[4], high[4];
        std::memcpy(low, from.words + word * from.stride, 4);
        out.codes[column] = low[column % 4];
        if (tile.weight_bits == 4 || from.wide[group * from.stride] == 0) continue;
        std::memcpy(high, from.highs + group * from.stride * kGroupWords + word % kGroupWords, 4);
        out.codes[column] = static_cast<std::int16_t>(high[column % 4] * 256 + low[column % 4]);
    }
}

constexpr ActivationFormat kActivations = {kTileTokens, group_bytes, quantize, read};

}  // namespace avx_vnni
}  // namespace baichuan2
