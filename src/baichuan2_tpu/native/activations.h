// Quantised activations of a batch of tokens, in the order in which the kernels read them.
//
// Tokens lie in tiles of at most 6, the number of accumulators that fit the registers; sizes differ by at most one.
// A group of 64 columns is 8-bit integers with one scale: x = scale * code, |code| <= 127. In a tile of T tokens:
//
//   codes    int8  [step][T][4]      a step is 4 columns: one 32-bit word a token
//   scales   float [group][T]
//   offsets  float [group][T]        -sum(codes): what the zero points multiply
//   starts   int16 pair [group][T]   -8 * sum of the codes that reach each 16-bit accumulator lane: columns 0, 1
//                                    and 2, 3 of each step
//
// The accumulators start there, and wrap as they may: sum(w * x) - 8 * sum(x) = sum((w - 8) * x) lies within
// 32 * 8 * 127 = 32512 for every 4-bit w, so the end is exact in 16 bits whatever happened on the way.
#pragma once

#include <cstdint>

#include "packed_matrix.h"

namespace baichuan2 {

constexpr std::int64_t kTileTokens = 6;
// A group whose largest value is below this counts as zero: 127 / largest must stay finite.
constexpr float kSmallestGroup = 1e-30f;

// Where one token's quantised columns go; its neighbours in the tile are `stride` tokens apart.
struct ActivationSlot {
    std::int32_t* steps;
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

    void reshape(std::int64_t tokens, std::int64_t columns) {
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
        return {codes() + at * kGroup, scales() + at, offsets() + at, starts() + at, tokens};
    }

    ActivationSlot slot(std::int64_t token) {
        std::int64_t index = token * tiles_ / tokens_;
        while (tile_start(index + 1) <= token) ++index;  // the division can fall one short
        const std::int64_t start = tile_start(index);
        const std::int64_t tokens = tile_start(index + 1) - start;
        const std::int64_t at = start * groups_;
        const std::int64_t lane = token - start;
        return {reinterpret_cast<std::int32_t*>(codes() + at * kGroup) + lane, scales() + at + lane,
                offsets() + at + lane, starts() + at + lane, tokens};
    }

private:
    static constexpr std::int64_t kBytesPerGroup = kGroup + 4 + 4 + 4;

    std::int8_t* codes() const { return reinterpret_cast<std::int8_t*>(buffer_.data()); }
    float* scales() const { return reinterpret_cast<float*>(codes() + max_tokens_ * capacity_groups_ * kGroup); }
    float* offsets() const { return scales() + max_tokens_ * capacity_groups_; }
    std::int32_t* starts() const { return reinterpret_cast<std::int32_t*>(offsets() + max_tokens_ * capacity_groups_); }

    std::int64_t capacity_groups_ = 0;
    Buffer buffer_;
    std::int64_t max_tokens_ = 0;
    std::int64_t tokens_ = 0;
    std::int64_t groups_ = 0;
    std::int64_t tiles_ = 0;
};

}  // namespace baichuan2
