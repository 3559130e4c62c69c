// Quantised activations of a batch of tokens: which tile holds a token, and where each tile begins.
//
//   | tile 0           | tile 1           | ...      a tile is a few neighbouring tokens, at most tile_tokens
//   | tokens x columns | tokens x columns |          of the format; sizes differ by at most one
//
// What lies inside a tile, and how many tokens fit, belongs to the instruction set: see activations_X.h in its
// room. What the numbers mean is the same for all. In a group of 64 columns, x = scale * code, and the codes of
// the group are narrow or wide:
//
//   narrow   |code| <= 127
//   wide     |code| <= 32639 = 127 * 256 + 127: 256 * high + low, both within int8. Adds no error that could
//            be measured
//
//   4-bit weights   all groups are narrow
//   8-bit weights   in each token, the groups with the largest values are wide, one of eight; the others
//                   are narrow. Their error is that of a group whose step is large, and those are wide
//   8-bit head      all groups are wide: it is sensitive, and a prompt multiplies it once
#pragma once

#include <cstdint>

#include "buffer.h"
#include "float16.h"
#include "layout/packed_matrix.h"

namespace baichuan2 {

// A group whose largest value is below this counts as zero: 32639 / largest must stay finite.
constexpr float kSmallestGroup = 1e-30f;

constexpr float kNarrowEnd = 127.0f;
constexpr float kWideEnd = 32639.0f;

// Of so many groups of a token one is wide. On the demo weights, with wide groups before the head, predictions
// diverge from those of 16 bits by 0.0037 nats per token (0.37 % of perplexity) without other wide groups, by
// 0.0008 with one of eight, and by 0.0004 with one of four.
constexpr std::int64_t kGroupsPerWide = 8;

// Neighbouring tokens of one batch.
struct ActivationTile {
    char* data;  // 64-byte aligned
    std::int64_t tokens;
    std::int64_t groups;  // of columns
    int weight_bits;
    bool is_all_wide;  // of 8-bit weights
};

// The value from which on a group's largest makes it wide. `largest` are those of the tile's groups in one
// token, `stride` floats apart.
float find_wide_limit(const ActivationTile& tile, const float* largest, std::int64_t stride);

// The end of the codes of a group.
BAICHUAN2_INLINE float code_end(float largest, float wide_limit) {
    return largest >= wide_limit ? kWideEnd : kNarrowEnd;
}

// One token's activations for a reader that knows no instruction set; columns in order.
struct PlainActivations {
    std::int16_t* codes;  // [group][64]
    float* scales;        // [group]
    float* offsets;       // [group], -sum(codes): what the zero points multiply
};

// How an instruction set keeps its activations. A lane is a token's place in its tile.
struct ActivationFormat {
    // The most tokens of a tile: those whose sums fit the registers together.
    std::int64_t tile_tokens;
    // Bytes of one token's group, everything included.
    std::int64_t (*group_bytes)(int weight_bits);
    // Write one token. The columns that fill up the last group get the code 0.
    void (*quantize)(const float* x, std::int64_t columns, const ActivationTile& tile, std::int64_t lane);
    // Read one token back, for tests.
    void (*read)(const ActivationTile& tile, std::int64_t lane, const PlainActivations& out);
};

class Activations {
public:
    Activations(const ActivationFormat& format, std::int64_t max_tokens, std::int64_t max_columns)
        : format_(format), buffer_(max_bytes(format, max_tokens, max_columns)) {}

    // `is_all_wide` is for 8-bit weights only.
    void reshape(std::int64_t tokens, std::int64_t columns, int weight_bits, bool is_all_wide) {
        weight_bits_ = weight_bits;
        is_all_wide_ = is_all_wide;
        tokens_ = tokens;
        groups_ = count_groups(columns);
        tiles_ = (tokens + format_.tile_tokens - 1) / format_.tile_tokens;
        token_bytes_ = token_bytes(format_, groups_, weight_bits);
    }

    BAICHUAN2_INLINE std::int64_t tokens() const { return tokens_; }
    BAICHUAN2_INLINE std::int64_t groups() const { return groups_; }
    BAICHUAN2_INLINE std::int64_t tiles() const { return tiles_; }
    BAICHUAN2_INLINE std::int64_t tile_start(std::int64_t index) const { return index * tokens_ / tiles_; }

    BAICHUAN2_INLINE ActivationTile tile(std::int64_t index) const {
        const std::int64_t start = tile_start(index);
        return {buffer_.data() + start * token_bytes_, tile_start(index + 1) - start, groups_, weight_bits_,
                is_all_wide_};
    }

    std::int64_t tile_of(std::int64_t token) const {
        std::int64_t index = token * tiles_ / tokens_;
        while (tile_start(index + 1) <= token) ++index;  // the division can fall one short
        return index;
    }

    // Quantise one token's columns.
    void store(std::int64_t token, const float* x, std::int64_t columns) {
        const std::int64_t index = tile_of(token);
        format_.quantize(x, columns, tile(index), token - tile_start(index));
    }

    void read(std::int64_t token, const PlainActivations& out) const {
        const std::int64_t index = tile_of(token);
        format_.read(tile(index), token - tile_start(index), out);
    }

private:
    static std::int64_t count_groups(std::int64_t columns) { return (columns + kGroup - 1) / kGroup; }
    // Whole cache lines, so that every tile begins at one.
    static std::int64_t token_bytes(const ActivationFormat& format, std::int64_t groups, int weight_bits) {
        return (groups * format.group_bytes(weight_bits) + 63) / 64 * 64;
    }
    static std::size_t max_bytes(const ActivationFormat& format, std::int64_t tokens, std::int64_t columns) {
        const std::int64_t groups = count_groups(columns);
        const std::int64_t narrow = token_bytes(format, groups, 4), wide = token_bytes(format, groups, 8);
        return static_cast<std::size_t>(tokens * (narrow > wide ? narrow : wide));
    }

    const ActivationFormat& format_;
    Buffer buffer_;
    int weight_bits_ = 4;
    bool is_all_wide_ = false;
    std::int64_t tokens_ = 0;
    std::int64_t groups_ = 0;
    std::int64_t tiles_ = 0;
    std::int64_t token_bytes_ = 0;
};

}  // namespace baichuan2
