// Quantised activations as the AVX2 kernels read them.
//
// A tile is up to 6 tokens: their 12 accumulators fit 16 registers beside two vectors of weights and two
// products. 4-bit weights meet 8-bit codes. 8-bit weights meet 16-bit codes, narrow groups too: without 8-bit
// multiplies that cannot saturate, products of 8-bit weights cost two instructions either way. A step is 4
// columns.
// In a tile of T tokens:
//
//   codes    beside 4-bit weights: int8  [step][T][columns 0, 1, 2, 3]
//            beside 8-bit weights: int16 [step][T][columns 0, 2, 1, 3]
//   scales   float [group][T]
//   offsets  float [group][T]   -sum(codes): what the zero points multiply
//   starts   int32 [group][T]   where the accumulators start, so that they end at sum((w - bias) * x):
//              int8 codes:   two 16-bit halves, -8 * sum of the codes of columns 0, 1 and of columns 2, 3
//              int16 codes:  -128 * sum(codes)
//
// Accumulators wrap as they may on the way: the end lies within 32 * 8 * 127 = 32512 (16 bits), or within
// 64 * 128 * 32639 < 2^31 (32 bits), for any weights, so it is exact.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "avx2/simd_avx2.h"
#include "layout/activations.h"

namespace baichuan2 {
namespace avx2 {

constexpr int kTileTokens = 6;

// Bytes of one code, by the bits of the weights it meets.
constexpr std::int64_t code_bytes(int weight_bits) { return weight_bits == 4 ? 1 : 2; }

// Bytes of one token's codes in a step.
template <int Bits>
constexpr std::int64_t kStepCodeBytes = kStepColumns * code_bytes(Bits);

// A tile's arrays from one of its lanes on; the next group or step of a lane is `stride` tokens further.
struct TileArrays {
    std::int8_t* codes;
    float* scales;
    float* offsets;
    std::int32_t* starts;
    std::int64_t stride;
};

BAICHUAN2_INLINE TileArrays open_tile(const ActivationTile& tile, std::int64_t lane = 0) {
    const std::int64_t groups = tile.tokens * tile.groups, bytes = code_bytes(tile.weight_bits);
    auto* codes = reinterpret_cast<std::int8_t*>(tile.data);
    auto* scales = reinterpret_cast<float*>(codes + groups * kGroup * bytes);
    float* offsets = scales + groups;
    auto* starts = reinterpret_cast<std::int32_t*>(offsets + groups);
    return {codes + lane * kStepColumns * bytes, scales + lane, offsets + lane, starts + lane, tile.tokens};
}

BAICHUAN2_INLINE float find_largest(const float* x) {
    __m256 largest = _mm256_setzero_ps();
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int i = 0; i < kGroup; i += 8) {
        largest = _mm256_max_ps(_mm256_and_ps(magnitude, _mm256_loadu_ps(x + i)), largest);
    }
    return Avx2Simd::largest(largest);
}

struct CodeRange {
    __m256 inverse;
    float scale;
};

// The range of a group with this largest value.
BAICHUAN2_INLINE CodeRange choose_range(float largest, float wide_limit) {
    if (largest < kSmallestGroup) return {_mm256_setzero_ps(), 0.0f};
    const float end = code_end(largest, wide_limit);
    return {_mm256_set1_ps(end / largest), largest / end};
}

BAICHUAN2_INLINE void quantize_group_8(const float* x, const CodeRange& range, const TileArrays& out,
                                       std::int64_t group) {
    __m256i pairs = _mm256_setzero_si256();
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work within 128-bit halves
    for (int i = 0; i < kGroup / 32; ++i) {
        __m256i codes[4];
        for (int j = 0; j < 4; ++j) {
            codes[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 32 + j * 8), range.inverse));
        }
        const __m256i packed =
            _mm256_permutevar8x32_epi32(_mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]),
                                                           _mm256_packs_epi32(codes[2], codes[3])),
                                        order);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi8(1), packed));
        alignas(32) std::int32_t steps[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(steps), packed);
        auto* to = reinterpret_cast<std::int32_t*>(out.codes) + (group * 16 + i * 8) * out.stride;
        for (int j = 0; j < 8; ++j) to[j * out.stride] = steps[j];
    }
    // Even 16-bit lanes hold columns 0, 1 of each step, odd lanes columns 2, 3.
    __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 8));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 4));
    const int low = static_cast<std::int16_t>(_mm_extract_epi16(sum, 0));
    const int high = static_cast<std::int16_t>(_mm_extract_epi16(sum, 1));
    out.scales[group * out.stride] = range.scale;
    out.offsets[group * out.stride] = static_cast<float>(-(low + high));
    out.starts[group * out.stride] = static_cast<std::int32_t>(
        (static_cast<std::uint32_t>(-8 * low) & 0xffff) | (static_cast<std::uint32_t>(-8 * high) << 16));
}

BAICHUAN2_INLINE void quantize_group_16(const float* x, const CodeRange& range, const TileArrays& out,
                                        std::int64_t group) {
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < kGroup / 8; ++i) {
        const __m256i codes = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 8), range.inverse));
        sums = _mm256_add_epi32(sums, codes);
        // Each half is a step: columns 0, 1, 2, 3 become 0, 2, 1, 3.
        const __m256i steps =
            _mm256_shufflelo_epi16(_mm256_packs_epi32(codes, codes), _MM_SHUFFLE(3, 1, 2, 0));
        auto* to = reinterpret_cast<std::int64_t*>(out.codes) + (group * 16 + i * 2) * out.stride;
        to[0] = _mm256_extract_epi64(steps, 0);
        to[out.stride] = _mm256_extract_epi64(steps, 2);
    }
    alignas(32) std::int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
    int sum = 0;
    for (const int lane : lanes) sum += lane;
    out.scales[group * out.stride] = range.scale;
    out.offsets[group * out.stride] = static_cast<float>(-sum);
    out.starts[group * out.stride] = -128 * sum;
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
    for (std::int64_t group = 0; group < tile.groups; ++group) {
        const CodeRange range = choose_range(out.scales[group * out.stride], wide_limit);
        if (Bits == 4) {
            quantize_group_8(columns_of(group), range, out, group);
        } else {
            quantize_group_16(columns_of(group), range, out, group);
        }
    }
}

inline std::int64_t group_bytes(int weight_bits) { return kGroup * code_bytes(weight_bits) + 4 + 4 + 4; }

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
    const std::int64_t bytes = code_bytes(tile.weight_bits);
    for (std::int64_t group = 0; group < tile.groups; ++group) {
        out.scales[group] = from.scales[group * from.stride];
        out.offsets[group] = from.offsets[group * from.stride];
    }
    for (std::int64_t column = 0; column < tile.groups * kGroup; ++column) {
        const std::int8_t* step = from.codes + column / kStepColumns * from.stride * kStepColumns * bytes;
        const std::int64_t i = column % kStepColumns;
        std::int16_t wide = step[i];
        if (bytes == 2) std::memcpy(&wide, step + (i % 2 * 2 + i / 2) * 2, 2);
        out.codes[column] = wide;
    }
}

constexpr ActivationFormat kActivations = {kTileTokens, group_bytes, quantize, read};

}  // namespace avx2
}  // namespace baichuan2
