// Keys and values of one sequence in float16: reserved address space, of which only what is used is touched.
//
//   [layer][keys, values][key-value head][capacity * head size]
//
//   of one head:   keys    [position / 8][head size][8 positions]
//                  values  [position][head size]
//
// A head's memory is readable up to the next multiple of kKeyBlock positions; key 0 is position 0.
// Truncating is only forgetting a length: what lies behind it is finite, never read unmasked,
// and overwritten.
#pragma once

#include <cstdint>
#include <cstring>

#include "buffer.h"

namespace baichuan2 {

// Attention reads keys in blocks of this many positions.
constexpr std::int64_t kKeyBlock = 64;

class KvCache {
public:
    using ToHalf = void (*)(const float* x, std::int64_t count, std::uint16_t* out);

    KvCache(std::int64_t layers, std::int64_t heads, std::int64_t head_size, std::int64_t context)
        : parts_(layers * 2 * heads),
          heads_(heads),
          head_size_(head_size),
          capacity_((context + kKeyBlock - 1) / kKeyBlock * kKeyBlock),
          buffer_(
              static_cast<std::size_t>(layers * 2 * heads * capacity_ * head_size) * sizeof(std::uint16_t),
              Buffer::Pages::kOnTouch) {}

    std::uint16_t* keys(std::int64_t layer, std::int64_t head) const { return at(2 * layer, head); }
    std::uint16_t* values(std::int64_t layer, std::int64_t head) const { return at(2 * layer + 1, head); }

    // Store one token's key and value.
    void store(ToHalf to_half, std::int64_t layer, std::int64_t head, std::int64_t position, const float* key,
               const float* value) const {
        to_half(value, head_size_, values(layer, head) + position * head_size_);
        std::uint16_t halves[kMaxHeadSize];
        to_half(key, head_size_, halves);
        std::uint16_t* out = keys(layer, head) + position / 8 * 8 * head_size_ + position % 8;
        for (std::int64_t d = 0; d < head_size_; ++d) out[d * 8] = halves[d];
    }

    // Hold the first positions of another cache of this shape.
    void copy_prefix(const KvCache& source, std::int64_t positions) const {
        const std::int64_t rows = (positions + 7) / 8 * 8;
        const std::int64_t stride = capacity_ * head_size_;
        auto* to = reinterpret_cast<std::uint16_t*>(buffer_.data());
        const auto* from = reinterpret_cast<const std::uint16_t*>(source.buffer_.data());
        for (std::int64_t part = 0; part < parts_; ++part) {
            std::memcpy(to + part * stride, from + part * stride,
                        static_cast<std::size_t>(rows * head_size_) * sizeof(std::uint16_t));
        }
    }

    bool has_shape_of(const KvCache& other) const {
        return parts_ == other.parts_ && head_size_ == other.head_size_ && capacity_ == other.capacity_;
    }

    static constexpr std::int64_t kMaxHeadSize = 256;

private:
    std::uint16_t* at(std::int64_t part, std::int64_t head) const {
        return reinterpret_cast<std::uint16_t*>(buffer_.data()) +
               (part * heads_ + head) * capacity_ * head_size_;
    }

    std::int64_t parts_;
    std::int64_t heads_;
    std::int64_t head_size_;
    std::int64_t capacity_;
    Buffer buffer_;
};

}  // namespace baichuan2
