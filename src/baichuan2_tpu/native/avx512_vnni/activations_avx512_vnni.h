// Quantised activations as the AVX-512 VNNI kernels read them.
//
// A tile is up to 16 tokens: their sums, of 16 rows each, fit 32 registers beside the weights. A dot product
// takes a word of 32 bits, broadcast to all rows: 4 columns beside 4-bit weights, 2 beside 8-bit weights.
// In a tile of T tokens:
//
//   codes    beside 4-bit weights: int8  [4 columns][T][columns 0, 1, 2, 3]
//            beside 8-bit weights: int16 [4 columns][columns 0, 2 | columns 1, 3][T][2]
//   scales   float [group][T]
//   offsets  float [group][T]   -sum(codes): what the zero points multiply
//   starts   int32 [group][T]   where a sum starts, so that it ends at sum((w - bias) * x):
//                               -8 * sum(codes) beside 4-bit weights, -128 * sum(codes) beside 8-bit weights
#pragma once

#include <immintrin.h>

#include <cstring>

#include "layout/activations.h"

namespace baichuan2 {
namespace avx512_vnni {

constexpr int kTileTokens = 16;

// Dot products of a group per token and vector of rows; each takes one word of codes.
constexpr std::int64_t group_words(int weight_bits) { return weight_bits == 4 ? kGroup / 4 : kGroup / 2; }

// A tile's arrays from one of its lanes on; the next group or word of a lane is `stride` tokens further.
struct TileArrays {
    std::int32_t* words;
    float* scales;
    float* offsets;
    std::int32_t* starts;
    std::int64_t stride;
};

BAICHUAN2_INLINE TileArrays open_tile(const ActivationTile& tile, std::int64_t lane = 0) {
    const std::int64_t groups = tile.tokens * tile.groups;
    auto* words = reinterpret_cast<std::int32_t*>(tile.data);
    auto* scales = reinterpret_cast<float*>(words + groups * group_words(tile.weight_bits));
    float* offsets = scales + groups;
    auto* starts = reinterpret_cast<std::int32_t*>(offsets + groups);
    return {words + lane, scales + lane, offsets + lane, starts + lane, tile.tokens};
}

// Pack a group's codes into words, and sum them up in the lanes of `sums`.
template <int Bits>
BAICHUAN2_INLINE void store_codes(const __m512i (&codes)[4], std::int32_t* words, __m512i& sums) {
    const __m512i zero = _mm512_setzero_si512();
    if (Bits == 4) {
        for (int i = 0; i < 4; ++i) {
            _mm_store_si128(reinterpret_cast<__m128i*>(words + i * 4), _mm512_cvtsepi32_epi8(codes[i]));
        }
        sums = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(1), _mm512_load_si512(words));
        return;
    }
    sums = zero;
    for (int i = 0; i < 4; ++i) {
        // columns 0, 1, 2, 3 become 0, 2, 1, 3
        const __m256i halves = _mm512_cvtsepi32_epi16(codes[i]);
        const __m256i ordered = _mm256_shufflehi_epi16(
            _mm256_shufflelo_epi16(halves, _MM_SHUFFLE(3, 1, 2, 0)), _MM_SHUFFLE(3, 1, 2, 0));
        _mm256_store_si256(reinterpret_cast<__m256i*>(words + i * 8), ordered);
        sums = _mm512_add_epi32(sums, codes[i]);
    }
}

template <int Bits>
BAICHUAN2_INLINE void quantize_group(const float* x, const TileArrays& out, std::int64_t group) {
    constexpr float kMost = max_code(Bits);
    constexpr std::int64_t kWords = group_words(Bits);
    __m512 values[4];
    __m512 largest = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) {
        values[i] = _mm512_loadu_ps(x + i * 16);
        largest = _mm512_max_ps(_mm512_abs_ps(values[i]), largest);
    }
    const float end = _mm512_reduce_max_ps(largest);
    const bool is_zero = end < kSmallestGroup;
    const __m512 inverse = _mm512_set1_ps(is_zero ? 0.0f : kMost / end);
    __m512i codes[4];
    for (int i = 0; i < 4; ++i) codes[i] = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverse));
    alignas(64) std::int32_t words[kWords];
    __m512i sums;
    store_codes<Bits>(codes, words, sums);
    std::int32_t* to = out.words + group * kWords * out.stride;
    for (std::int64_t i = 0; i < kWords; ++i) to[i * out.stride] = words[i];
    const int sum = _mm512_reduce_add_epi32(sums);
    out.scales[group * out.stride] = is_zero ? 0.0f : end / kMost;
    out.offsets[group * out.stride] = static_cast<float>(-sum);
    out.starts[group * out.stride] = (Bits == 4 ? -8 : -128) * sum;
}

template <int Bits>
BAICHUAN2_INLINE void quantize_columns(const float* x, std::int64_t columns, const TileArrays& out) {
    std::int64_t column = 0;
    for (; column + kGroup <= columns; column += kGroup)
        quantize_group<Bits>(x + column, out, column / kGroup);
    if (column < columns) {
        float rest[kGroup] = {};
        for (std::int64_t i = 0; column + i < columns; ++i) rest[i] = x[column + i];
        quantize_group<Bits>(rest, out, column / kGroup);
    }
}

inline std::int64_t group_bytes(int weight_bits) { return group_words(weight_bits) * 4 + 4 + 4 + 4; }

inline void quantize(const float* x, std::int64_t columns, const ActivationTile& tile, std::int64_t lane) {
    const TileArrays out = open_tile(tile, lane);
    if (tile.weight_bits == 4) {
        quantize_columns<4>(x, columns, out);
    } else {
        quantize_columns<8>(x, columns, out);
    }
}

inline void read(const ActivationTile& tile, std::int64_t lane, const PlainActivations& out) {
    const TileArrays from = open_tile(tile, lane);
    for (std::int64_t group = 0; group < tile.groups; ++group) {
        out.scales[group] = from.scales[group * from.stride];
        out.offsets[group] = from.offsets[group * from.stride];
    }
    for (std::int64_t column = 0; column < tile.groups * kGroup; ++column) {
        const std::int64_t step = column / kStepColumns, i = column % kStepColumns;
        if (tile.weight_bits == 4) {
            std::int8_t codes[4];
            std::memcpy(codes, from.words + step * from.stride, 4);
            out.codes[column] = codes[i];
        } else {
            std::int16_t codes[2];
            std::memcpy(codes, from.words + (step * 2 + i % 2) * from.stride, 4);
            out.codes[column] = codes[i / 2];
        }
    }
}

constexpr ActivationFormat kActivations = {kTileTokens, group_bytes, quantize, read};

}  // namespace avx512_vnni
}  // namespace baichuan2
