// Quantised activations of a batch of tokens, in the order in which the kernels read them.
//
// Tokens lie in tiles of at most 6, the number of accumulators that fit the registers; sizes differ by at
// most one. A group of 64 columns is integers with one scale: x = scale * code. 4-bit weights meet 8-bit
// codes. 8-bit weights meet 16-bit codes: without 8-bit multiplies that cannot saturate, products of 8-bit
// weights cost two instructions either way, and at 16 bits the activations add no error that could be
// measured. A step is 4 columns. In a tile of T tokens:
//
//   codes    beside 4-bit weights: int8  [step][T][columns 0, 1, 2, 3], |code| <= 127
//            beside 8-bit weights: int16 [step][T][columns 0, 2, 1, 3], |code| <= 32767
//   scales   float [group][T]
//   offsets  float [group][T]   -sum(codes): what the zero points multiply
//   starts   int32 [group][T]   where the accumulators start, so that they end at sum((w - bias) * x):
//              int8 codes:   two 16-bit halves, -8 * sum of the codes of columns 0, 1 and of columns 2, 3
//              int16 codes:  -128 * sum(codes)
//
// Accumulators wrap as they may on the way: the end lies within 32 * 8 * 127 = 32512 (16 bits), or within
// 64 * 128 * 32767 < 2^31 (32 bits), for any weights, so it is exact.
#pragma once

#include <cstdint>

#include "layout/packed_matrix.h"

namespace baichuan2 {

constexpr std::int64_t kTileTokens = 6;
// A group whose largest value is below this counts as zero: 127 / largest must stay finite.
constexpr float kSmallestGroup = 1e-30f;

// Bytes of one code, by the bits of the weights it meets.
constexpr std::int64_t code_bytes(int weight_bits) { return weight_bits == 4 ? 1 : 2; }

// Where one token's quantised columns go; its next group or step is `stride` tokens further.
struct ActivationSlot {
    int weight_bits;
    std::int8_t* steps;
    float* scales;
    float* offsets;
    std::int32_t* starts;
    std::int64_t stride;
};

struct Tile {
    const std::int8_t* codes;
    const float* scales;
    const float* offsets;
    const std::int32_t* starts;
    std::int64_t tokens;
};

class Activations {
public:
    Activations() = default;
    Activations(std::int64_t max_tokens, std::int64_t max_columns)
        : capacity_groups_((max_columns + kGroup - 1) / kGroup),
          buffer_(static_cast<std::size_t>(max_tokens * capacity_groups_ * kBytesPerGroup)),
          max_tokens_(max_tokens) {}

    void reshape(std::int64_t tokens, std::int64_t columns, int weight_bits) {
        weight_bits_ = weight_bits;
        tokens_ = tokens;
        groups_ = (columns + kGroup - 1) / kGroup;
        tiles_ = (tokens + kTileTokens - 1) / kTileTokens;
    }

    std::int64_t tokens() const { return tokens_; }
    std::int64_t groups() const { return groups_; }
    std::int64_t tiles() const { return tiles_; }
    std::int64_t tile_start(std::int64_t tile) const { return tile * tokens_ / tiles_; }

    Tile tile(std::int64_t index, std::int64_t first_group = 0) const {
        const std::int64_t start = tile_start(index);
        const std::int64_t tokens = tile_start(index + 1) - start;
        const std::int64_t at = start * groups_ + first_group * tokens;
        return {codes() + at * group_bytes(), scales() + at, offsets() + at, starts() + at, tokens};
    }

    ActivationSlot slot(std::int64_t token) {
        std::int64_t index = token * tiles_ / tokens_;
        while (tile_start(index + 1) <= token) ++index;  // the division can fall one short
        const std::int64_t start = tile_start(index);
        const std::int64_t tokens = tile_start(index + 1) - start;
        const std::int64_t at = start * groups_;
        const std::int64_t lane = token - start;
        return {weight_bits_,
                codes() + at * group_bytes() + lane * kStepColumns * code_bytes(weight_bits_),
                scales() + at + lane,
                offsets() + at + lane,
                starts() + at + lane,
                tokens};
    }

private:
    static constexpr std::int64_t kMostGroupBytes = kGroup * code_bytes(8);
    static constexpr std::int64_t kBytesPerGroup = kMostGroupBytes + 4 + 4 + 4;

    std::int64_t group_bytes() const { return kGroup * code_bytes(weight_bits_); }
    std::int8_t* codes() const { return reinterpret_cast<std::int8_t*>(buffer_.data()); }
    float* scales() const {
        return reinterpret_cast<float*>(codes() + max_tokens_ * capacity_groups_ * kMostGroupBytes);
    }
    float* offsets() const { return scales() + max_tokens_ * capacity_groups_; }
    std::int32_t* starts() const {
        return reinterpret_cast<std::int32_t*>(offsets() + max_tokens_ * capacity_groups_);
    }

    std::int64_t capacity_groups_ = 0;
    Buffer buffer_;
    std::int64_t max_tokens_ = 0;
    int weight_bits_ = 4;
    std::int64_t tokens_ = 0;
    std::int64_t groups_ = 0;
    std::int64_t tiles_ = 0;
};

}  // namespace baichuan2
