// Keys and values of one sequence: reserved address space, of which only what is used is touched.
//
//   [layer][keys, values][key-value head][capacity]
//
// In float16, of one head:
//
//   keys    [position / 8][head size][8 positions]
//   values  [position][head size]
//
// In int8, of one head, [position / 64] times an Int8Block:
//
//   codes   keys    [head size / 4][64 positions][4 columns]
//           values  [64 / 4][head size][4 positions]
//   scales  float [64]    what a position's codes are multiplied with: number = scale * (code - 128)
//
// So a word holds the four codes that a dot product adds at once: neighbouring columns of a key, and neighbouring
// positions of a value. Codes are 1 ... 255: products of unsigned and signed bytes exist on every processor.
//
// A head's memory is readable up to the next multiple of kKeyBlock positions; key 0 is position 0.
// Truncating is only forgetting a length: what lies behind it is finite, never read unmasked,
// and overwritten.
#pragma once

#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "float16.h"

namespace baichuan2 {

// Attention reads keys in blocks of this many positions.
constexpr std::int64_t kKeyBlock = 64;

// The code of the number 0.
constexpr int kZeroCode = 128;

// kKeyBlock positions of one head in int8, keys or values.
struct Int8Block {
    std::uint8_t* codes;
    float* scales;

    BAICHUAN2_INLINE Int8Block(char* data, std::int64_t head_size)
        : codes(reinterpret_cast<std::uint8_t*>(data)),
          scales(reinterpret_cast<float*>(data + kKeyBlock * head_size)) {}

    static BAICHUAN2_INLINE std::int64_t bytes(std::int64_t head_size) { return kKeyBlock * (head_size + 4); }
};

// How floats become what a cache holds; see elementwise.h and quantize_row.h.
struct KvConversions {
    void (*to_half)(const float* x, std::int64_t count, std::uint16_t* out);
    float (*to_int8)(const float* x, std::int64_t count, std::uint8_t* codes);  // returns the scale
};

class KvCache {
public:
    KvCache(std::int64_t layers, std::int64_t heads, std::int64_t head_size, std::int64_t context, int bits)
        : parts_(layers * 2 * heads),
          heads_(heads),
          head_size_(head_size),
          bits_(bits),
          head_bytes_((context + kKeyBlock - 1) / kKeyBlock * kKeyBlock * position_bytes(head_size, bits)),
          buffer_(static_cast<std::size_t>(parts_ * head_bytes_), Buffer::Pages::kOnTouch) {}

    // What one position takes in one head, of the keys or of the values.
    static std::int64_t position_bytes(std::int64_t head_size, int bits) {
        return bits == 8 ? Int8Block::bytes(head_size) / kKeyBlock : 2 * head_size;
    }

    char* keys(std::int64_t layer, std::int64_t head) const { return at(2 * layer, head); }
    char* values(std::int64_t layer, std::int64_t head) const { return at(2 * layer + 1, head); }

    // Store one token's key and value.
    void store(const KvConversions& convert, std::int64_t layer, std::int64_t head, std::int64_t position,
               const float* key, const float* value) const {
        if (bits_ == 8) {
            store_int8_key(convert, block(keys(layer, head), position), position % kKeyBlock, key);
            store_int8_value(convert, block(values(layer, head), position), position % kKeyBlock, value);
        } else {
            store_halves(convert, layer, head, position, key, value);
        }
    }

    // Hold the first positions of another cache of this shape.
    void copy_prefix(const KvCache& source, std::int64_t positions) const {
        const std::int64_t unit = bits_ == 8 ? kKeyBlock : 8;
        const std::int64_t bytes = (positions + unit - 1) / unit * unit * position_bytes(head_size_, bits_);
        for (std::int64_t part = 0; part < parts_; ++part) {
            std::memcpy(buffer_.data() + part * head_bytes_, source.buffer_.data() + part * head_bytes_,
                        static_cast<std::size_t>(bytes));
        }
    }

    bool has_shape_of(const KvCache& other) const {
        return parts_ == other.parts_ && head_size_ == other.head_size_ && bits_ == other.bits_ &&
               head_bytes_ == other.head_bytes_;
    }

    static constexpr std::int64_t kMaxHeadSize = 256;

private:
    char* at(std::int64_t part, std::int64_t head) const {
        return buffer_.data() + (part * heads_ + head) * head_bytes_;
    }
    Int8Block block(char* head, std::int64_t position) const {
        return {head + position / kKeyBlock * Int8Block::bytes(head_size_), head_size_};
    }

    void store_halves(const KvConversions& convert, std::int64_t layer, std::int64_t head,
                      std::int64_t position, const float* key, const float* value) const {
        auto* rows = reinterpret_cast<std::uint16_t*>(values(layer, head));
        convert.to_half(value, head_size_, rows + position * head_size_);
        std::uint16_t halves[kMaxHeadSize];
        convert.to_half(key, head_size_, halves);
        auto* columns = reinterpret_cast<std::uint16_t*>(keys(layer, head));
        columns += position / 8 * 8 * head_size_ + position % 8;
        for (std::int64_t d = 0; d < head_size_; ++d) columns[d * 8] = halves[d];
    }

    void store_int8_key(const KvConversions& convert, const Int8Block& block, std::int64_t row,
                        const float* key) const {
        std::uint8_t codes[kMaxHeadSize];
        block.scales[row] = convert.to_int8(key, head_size_, codes);
        for (std::int64_t d = 0; d < head_size_; d += 4) {
            std::memcpy(block.codes + d * kKeyBlock + row * 4, codes + d, 4);
        }
    }

    void store_int8_value(const KvConversions& convert, const Int8Block& block, std::int64_t row,
                          const float* value) const {
        std::uint8_t codes[kMaxHeadSize];
        block.scales[row] = convert.to_int8(value, head_size_, codes);
        std::uint8_t* out = block.codes + row / 4 * 4 * head_size_ + row % 4;
        for (std::int64_t d = 0; d < head_size_; ++d) out[d * 4] = codes[d];
    }

    std::int64_t parts_;
    std::int64_t heads_;
    std::int64_t head_size_;
    int bits_;
    std::int64_t head_bytes_;
    Buffer buffer_;
};

}  // namespace baichuan2
