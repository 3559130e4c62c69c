// Quantised activations as the AVX-512 VNNI kernels read them.
//
// A tile is up to 16 tokens: their sums, of 16 rows each, fit 32 registers beside the weights. A dot product
// takes a word of 32 bits, the int8 codes of 4 columns, broadcast to all rows. In a tile of T tokens:
//
//   words    int8  [4 columns][T][columns 0, 1, 2, 3]   the codes of narrow groups, the low bytes of wide ones
//   scales   float [group][T]
//   offsets  float [group][T]      -sum(codes): what the zero points multiply
//   starts   int32 [group][T]      where a sum starts, so that it ends at sum((w - bias) * x):
//                                  -8 * sum(codes) beside 4-bit weights, -128 * sum(codes) beside 8-bit weights
// and beside 8-bit weights:
//   highs    int8  [group][T][64]  the high bytes of wide groups, otherwise not written
//   wide     int32 [group][T]      1 where the group is wide
#pragma once

#include <immintrin.h>

#include <cstring>

#include "layout/activations.h"

namespace baichuan2 {
namespace avx512_vnni {

constexpr int kTileTokens = 16;

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

BAICHUAN2_INLINE float find_largest(const float* x) {
    __m512 largest = _mm512_setzero_ps();
    for (int i = 0; i < kGroup; i += 16) {
        largest = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i)), largest);
    }
    return _mm512_reduce_max_ps(largest);
}

// Pack a group's codes, or their low bytes, into words.
BAICHUAN2_INLINE void store_bytes(const __m512i (&codes)[4], std::int32_t* words) {
    for (int i = 0; i < 4; ++i) {
        _mm_store_si128(reinterpret_cast<__m128i*>(words + i * 4), _mm512_cvtepi32_epi8(codes[i]));
    }
}

// Store the high bytes of a wide group, and leave the low bytes, as numbers from -128 to 127.
BAICHUAN2_INLINE void split_codes(__m512i (&codes)[4], std::int32_t* highs) {
    __m512i parts[4];
    for (int i = 0; i < 4; ++i) {
        parts[i] = _mm512_srai_epi32(_mm512_add_epi32(codes[i], _mm512_set1_epi32(128)), 8);
        codes[i] = _mm512_sub_epi32(codes[i], _mm512_slli_epi32(parts[i], 8));
    }
    store_bytes(parts, highs);
}

// `out.scales` has the group's largest value.
template <int Bits>
BAICHUAN2_INLINE void quantize_group(const float* x, float wide_limit, const TileArrays& out,
                                     std::int64_t group) {
    const std::int64_t at = group * out.stride;
    const float largest = out.scales[at], end = code_end(largest, wide_limit);
    const bool is_zero = largest < kSmallestGroup, is_wide = largest >= wide_limit;
    const __m512 inverse = _mm512_set1_ps(is_zero ? 0.0f : end / largest);
    __m512i codes[4];
    __m512i sums = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i) {
        codes[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i * 16), inverse));
        sums = _mm512_add_epi32(sums, codes[i]);
    }
    if (Bits == 8) {
        out.wide[at] = is_wide ? 1 : 0;
        if (is_wide) split_codes(codes, out.highs + at * kGroupWords);
    }
    alignas(64) std::int32_t words[kGroupWords];
    store_bytes(codes, words);
    std::int32_t* to = out.words + at * kGroupWords;
    for (std::int64_t i = 0; i < kGroupWords; ++i) to[i * out.stride] = words[i];
    const int sum = _mm512_reduce_add_epi32(sums);
    out.scales[at] = is_zero ? 0.0f : largest / end;
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
        out.scales[group * out.stride] = find_largest(columns_of(group));
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

}  // namespace avx512_vnni
}  // namespace baichuan2
