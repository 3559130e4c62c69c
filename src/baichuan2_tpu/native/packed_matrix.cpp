#include "packed_matrix.h"

#include <algorithm>
#include <cstring>

namespace baichuan2 {
namespace {

constexpr std::int64_t kRowsAtOnce = 4;  // blocks a task packs: 64 rows are whole cache lines of the source

// The four low nibbles of `word`, a byte each, the lowest first.
inline std::uint32_t spread_nibbles(std::uint32_t word) {
    word = (word & 0xff) | ((word & 0xff00) << 8);
    return (word | (word << 4)) & 0x0f0f0f0f;
}

inline std::uint8_t zero_of(const GptqView& source, std::int64_t group, std::int64_t row, int bits) {
    const std::int64_t per_word = 32 / bits;
    const std::int64_t words = (source.rows + per_word - 1) / per_word;
    const std::uint32_t word = source.qzeros[group * words + row / per_word];
    const std::uint32_t mask = (1u << bits) - 1;
    return static_cast<std::uint8_t>((((word >> (row % per_word * bits)) & mask) + 1) & mask);
}

}  // namespace

PackedMatrix::PackedMatrix(std::int64_t rows, std::int64_t columns, int bits)
    : bits_(bits), rows_(rows), columns_(columns), groups_((columns + kGroup - 1) / kGroup) {
    blocks_ = (rows + block_rows() - 1) / block_rows();
    buffer_ = Buffer(static_cast<std::size_t>(bytes()));
    codes_ = reinterpret_cast<std::uint8_t*>(buffer_.data());
    zeros_ = codes_ + blocks_ * groups_ * kGroupBytes;
    scales_ = reinterpret_cast<std::uint16_t*>(zeros_ + blocks_ * groups_ * 8);
}

void PackedMatrix::pack(std::int64_t first_row, const GptqView& source, ThreadPool& pool) {
    const std::int64_t first_block = first_row / block_rows();
    const std::int64_t count = (source.rows + block_rows() - 1) / block_rows();
    pool.parallel_for(count, kRowsAtOnce, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) pack_block(first_block + i, i * block_rows(), source);
    });
}

void PackedMatrix::pack_block(std::int64_t block, std::int64_t source_row, const GptqView& source) {
    const std::int64_t rows = std::min(block_rows(), source.rows - source_row);
    pack_codes(codes_ + block * groups_ * kGroupBytes, source_row, rows, source);
    std::uint16_t* scales = scales_ + block * groups_ * block_rows();
    std::uint8_t* zeros = zeros_ + block * groups_ * 8;
    for (std::int64_t group = 0; group < groups_; ++group) {
        const std::int64_t from = group * kGroup / source.group_size;
        for (std::int64_t row = 0; row < rows; ++row) {
            scales[group * block_rows() + row] = source.scales[from * source.rows + source_row + row];
            const std::uint8_t zero = zero_of(source, from, source_row + row, bits_);
            zeros[group * 8 + row % 8] |= static_cast<std::uint8_t>(row < 8 ? zero : zero << 4);
        }
    }
}

void PackedMatrix::pack_codes(std::uint8_t* codes, std::int64_t row, std::int64_t rows, const GptqView& source) const {
    const std::int64_t columns_a_word = 32 / bits_;
    for (std::int64_t column = 0; column < source.columns; column += columns_a_word) {
        const std::uint32_t* words = source.qweight + column / columns_a_word * source.rows + row;
        std::uint32_t steps[16] = {};
        for (std::int64_t i = 0; i < rows; ++i) {
            if (bits_ == 8) {
                steps[i] = words[i];
            } else {
                const int shift = i < 8 ? 0 : 4;
                steps[i % 8] |= spread_nibbles(words[i]) << shift;
                steps[8 + i % 8] |= spread_nibbles(words[i] >> 16) << shift;
            }
        }
        std::memcpy(codes + column * 8, steps, static_cast<std::size_t>(columns_a_word * 8));
    }
}

}  // namespace baichuan2
