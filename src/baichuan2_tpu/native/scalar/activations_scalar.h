// Quantised activations in plain C++: the definition of the integers that every instruction set must reach.
//
// A tile is one token:
//
//   codes    int8 [group][64] beside 4-bit weights,  int16 [group][64] beside 8-bit weights
//   scales   float [group]
//   offsets  float [group]    -sum(codes): what the zero points multiply
#pragma once

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

// `count` columns, padded with zeros to a group.
template <class Code>
void quantize_group(const float* x, std::int64_t count, float most, std::int64_t group,
                    const TokenArrays<Code>& token) {
    float largest = 0.0f;
    for (std::int64_t i = 0; i < count; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    const bool is_zero = largest < kSmallestGroup;
    const float inverse = is_zero ? 0.0f : most / largest;
    Code* codes = token.codes + group * kGroup;
    int sum = 0;
    for (std::int64_t i = 0; i < kGroup; ++i) {
        codes[i] = i < count ? static_cast<Code>(static_cast<int>(std::nearbyintf(x[i] * inverse))) : Code{0};
        sum += codes[i];
    }
    token.scales[group] = is_zero ? 0.0f : largest / most;
    token.offsets[group] = static_cast<float>(-sum);
}

template <class Code>
void quantize_token(const float* x, std::int64_t columns, const ActivationTile& tile) {
    const TokenArrays<Code> token(tile);
    for (std::int64_t column = 0; column < columns; column += kGroup) {
        const std::int64_t count = columns - column < kGroup ? columns - column : kGroup;
        quantize_group(x + column, count, max_code(tile.weight_bits), column / kGroup, token);
    }
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
