// Quantised activations in plain C++: the definition of the integers that every instruction set must reach.
//
// A tile is one token:
//
//   codes    int8 [group][64] beside 4-bit weights,  int16 [group][64] beside 8-bit weights
//   scales   float [group]
//   offsets  float [group]    -sum(codes): what the zero points multiply
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "layout/activations.h"

namespace baichuan2 {
namespace scalar {

// Code is std::int8_t beside 4-bit weights, std::int16_t beside 8-bit weights.
template <class Code>
struct TokenArrays {
    Code* codes;
    float* scales;
    float* offsets;

    explicit TokenArrays(const ActivationTile& tile)
        : codes(reinterpret_cast<Code*>(tile.data)),
          scales(reinterpret_cast<float*>(codes + tile.groups * kGroup)),
          offsets(scales + tile.groups) {}
};

inline std::int64_t group_bytes(int weight_bits) { return kGroup * (weight_bits == 4 ? 1 : 2) + 4 + 4; }

// Columns of a group that has `count`.
inline float find_largest(const float* x, std::int64_t count) {
    float largest = 0.0f;
    for (std::int64_t i = 0; i < count; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    return largest;
}

// `count` columns, padded with zeros to a group. `token.scales` has the group's largest value.
template <class Code>
void quantize_group(const float* x, std::int64_t count, float wide_limit, std::int64_t group,
                    const TokenArrays<Code>& token) {
    const float largest = token.scales[group], end = code_end(largest, wide_limit);
    const bool is_zero = largest < kSmallestGroup;
    const float inverse = is_zero ? 0.0f : end / largest;
    Code* codes = token.codes + group * kGroup;
    int sum = 0;
    for (std::int64_t i = 0; i < kGroup; ++i) {
        codes[i] = i < count ? static_cast<Code>(static_cast<int>(std::nearbyintf(x[i] * inverse))) : Code{0};
        sum += codes[i];
    }
    token.scales[group] = is_zero ? 0.0f : largest / end;
    token.offsets[group] = static_cast<float>(-sum);
}

template <class Code>
void quantize_token(const float* x, std::int64_t columns, const ActivationTile& tile) {
    const TokenArrays<Code> token(tile);
    const auto count = [&](std::int64_t group) { return std::min(columns - group * kGroup, kGroup); };
    for (std::int64_t group = 0; group < tile.groups; ++group)
        token.scales[group] = find_largest(x + group * kGroup, count(group));
    const float wide_limit = find_wide_limit(tile, token.scales, 1);
    for (std::int64_t group = 0; group < tile.groups; ++group)
        quantize_group(x + group * kGroup, count(group), wide_limit, group, token);
}

template <class Code>
void read_token(const ActivationTile& tile, const PlainActivations& out) {
    const TokenArrays<Code> token(tile);
    for (std::int64_t i = 0; i < tile.groups * kGroup; ++i) out.codes[i] = token.codes[i];
    std::memcpy(out.scales, token.scales, static_cast<std::size_t>(tile.groups) * sizeof(float));
    std::memcpy(out.offsets, token.offsets, static_cast<std::size_t>(tile.groups) * sizeof(float));
}

inline void quantize(const float* x, std::int64_t columns, const ActivationTile& tile, std::int64_t) {
    const auto quantize_codes =
        tile.weight_bits == 4 ? quantize_token<std::int8_t> : quantize_token<std::int16_t>;
    quantize_codes(x, columns, tile);
}

inline void read(const ActivationTile& tile, std::int64_t, const PlainActivations& out) {
    const auto read_codes = tile.weight_bits == 4 ? read_token<std::int8_t> : read_token<std::int16_t>;
    read_codes(tile, out);
}

constexpr ActivationFormat kActivations = {1, group_bytes, quantize, read};

}  // namespace scalar
}  // namespace baichuan2
