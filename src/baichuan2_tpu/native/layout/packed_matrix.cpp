#include "layout/packed_matrix.h"

#include <algorithm>
#include <cstring>

namespace baichuan2 {
namespace {

// Rows that are packed together: 256 bytes of each row of words, so that full cache lines are used at once.
// An output head's rows lie half a megabyte apart, where lines evict each other before a second visit.
constexpr std::int64_t kStripRows = 64;

// The four low nibbles of `word`, a byte each, the lowest first.
inline std::uint32_t nibbles_to_bytes(std::uint32_t word) {
    word = (word & 0xff) | ((word & 0xff00) << 8);
    return (word | (word << 4)) & 0x0f0f0f0f;
}

// One word of every row of a block: 8 columns of 16 rows, or 4 columns of 8.
template <int Bits>
inline void pack_words(const std::uint32_t* words, std::uint32_t* steps) {
    for (int i = 0; i < 8; ++i) {
        if (Bits == 8) {
            steps[i] = words[i];
        } else {
            steps[i] = nibbles_to_bytes(words[i]) | nibbles_to_bytes(words[8 + i]) << 4;
            steps[8 + i] = nibbles_to_bytes(words[i] >> 16) | nibbles_to_bytes(words[8 + i] >> 16) << 4;
        }
    }
}

template <int Bits>
inline std::uint8_t unpack_zero(const std::uint32_t* qzeros, std::int64_t row) {
    constexpr std::int64_t kPerWord = 32 / Bits;
    constexpr std::uint32_t kMask = (1u << Bits) - 1;
    const std::uint32_t word = qzeros[row / kPerWord];
    return static_cast<std::uint8_t>((((word >> (row % kPerWord * Bits)) & kMask) + 1) & kMask);
}

}  // namespace

PackedMatrix::PackedMatrix(std::int64_t rows, std::int64_t columns, int bits, const char* packed)
    : bits_(bits), rows_(rows), columns_(columns), groups_((columns + kGroup - 1) / kGroup) {
    blocks_ = (rows + block_rows() - 1) / block_rows();
    if (packed == nullptr) buffer_ = Buffer(static_cast<std::size_t>(bytes()));
    // Nothing writes to a matrix that was packed already: Model::pack refuses to.
    codes_ = reinterpret_cast<std::uint8_t*>(packed == nullptr ? buffer_.data() : const_cast<char*>(packed));
    zeros_ = codes_ + blocks_ * groups_ * kGroupBytes;
    scales_ = reinterpret_cast<std::uint16_t*>(zeros_ + blocks_ * groups_ * 8);
}

void PackedMatrix::pack(std::int64_t first_row, const GptqView& source, ThreadPool& pool) {
    const std::int64_t strips = (source.rows + kStripRows - 1) / kStripRows;
    pool.parallel_for(strips, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            if (bits_ == 4) {
                pack_strip<4>(first_row, i * kStripRows, source);
            } else {
                pack_strip<8>(first_row, i * kStripRows, source);
            }
        }
    });
}

// Pack source rows [row, row + kStripRows), as far as there are any.
template <int Bits>
void PackedMatrix::pack_strip(std::int64_t first_row, std::int64_t row, const GptqView& source) {
    constexpr std::int64_t kRows = Bits == 4 ? 16 : 8;
    constexpr std::int64_t kColumns = 32 / Bits;  // of one word
    const std::int64_t end = std::min(row + kStripRows, source.rows);
    for (std::int64_t column = 0; column < source.columns; column += kColumns) {
        const std::uint32_t* words = source.qweight + column / kColumns * source.rows;
        for (std::int64_t at = row; at < end; at += kRows) {
            std::uint32_t padded[16] = {};
            const bool is_full = at + kRows <= end;
            if (!is_full) std::copy(words + at, words + end, padded);
            std::uint32_t steps[2 * 8];
            pack_words<Bits>(is_full ? words + at : padded, steps);
            std::uint8_t* out = codes_ + (first_row + at) / kRows * groups_ * kGroupBytes;
            std::memcpy(out + column * 8, steps, kColumns * 8);
        }
    }
    for (std::int64_t group = 0; group < groups_; ++group) {
        const std::int64_t from = group * kGroup / source.group_size;
        const std::uint32_t* qzeros = source.qzeros + from * ((source.rows + kColumns - 1) / kColumns);
        for (std::int64_t at = row; at < end; ++at) {
            const std::int64_t block = (first_row + at) / kRows, lane = (first_row + at) % kRows;
            const std::int64_t to = block * groups_ + group;
            scales_[to * kRows + lane] = source.scales[from * source.rows + at];
            const auto zero = static_cast<std::uint8_t>(unpack_zero<Bits>(qzeros, at) << (lane < 8 ? 0 : 4));
            zeros_[to * 8 + lane % 8] |= zero;
        }
    }
}

}  // namespace baichuan2
