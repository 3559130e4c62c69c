// A quantised matrix in the order in which the kernels read it.
//
// Rows are outputs, columns are inputs, groups are 64 columns. Rows lie in blocks of 16 (4 bits) or of 8
// (8 bits). One step is 4 columns of a block, 32 bytes. A block's steps follow each other, so that decoding
// reads straight on.
//
//   4 bits, byte j of a step:   low nibble  = row j / 4,      column j % 4
//                               high nibble = row 8 + j / 4,  column j % 4
//   8 bits, byte j of a step:   row j / 4,  column j % 4
//
//   scales  float16 [block][group][row in block]
//   zeros   bytes   [block][group][8]
//             4 bits:  low nibble of byte j = row j,  high nibble = row 8 + j
//             8 bits:  byte j = row j
//
// Every instruction set reads this layout, and files keep it: whoever changes it raises kPackedLayout.
// Rows and columns that pad the last block and group have scale 0 and meet zero activations.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "layout/gptq_view.h"
#include "thread_pool.h"

namespace baichuan2 {

constexpr int kPackedLayout = 1;
constexpr std::int64_t kGroup = 64;
constexpr std::int64_t kStepColumns = 4;
constexpr std::int64_t kStepBytes = 32;
constexpr std::int64_t kGroupBytes = kGroup / kStepColumns * kStepBytes;  // of one block

class PackedMatrix {
public:
    PackedMatrix() = default;
    // In memory of its own, zeroed, or over bytes() of `packed`, which hold such a matrix and outlive this one.
    PackedMatrix(std::int64_t rows, std::int64_t columns, int bits, const char* packed = nullptr);

    // Copy `source` to the rows that begin at `first_row`, a multiple of the block's rows. Only in own memory.
    void pack(std::int64_t first_row, const GptqView& source, ThreadPool& pool);

    int bits() const { return bits_; }
    std::int64_t rows() const { return rows_; }
    std::int64_t columns() const { return columns_; }
    std::int64_t groups() const { return groups_; }
    std::int64_t blocks() const { return blocks_; }
    std::int64_t block_rows() const { return bits_ == 4 ? 16 : 8; }
    std::int64_t padded_rows() const { return blocks_ * block_rows(); }
    const char* data() const { return reinterpret_cast<const char*>(codes_); }
    std::int64_t bytes() const { return blocks_ * groups_ * (kGroupBytes + block_rows() * 2 + 8); }

    const std::uint8_t* codes(std::int64_t block) const { return codes_ + block * groups_ * kGroupBytes; }
    const std::uint16_t* scales(std::int64_t block) const { return scales_ + block * groups_ * block_rows(); }
    const std::uint8_t* zeros(std::int64_t block) const { return zeros_ + block * groups_ * 8; }

private:
    template <int Bits>
    void pack_strip(std::int64_t first_row, std::int64_t row, const GptqView& source);

    int bits_ = 0;
    std::int64_t rows_ = 0;
    std::int64_t columns_ = 0;
    std::int64_t groups_ = 0;
    std::int64_t blocks_ = 0;
    Buffer buffer_;
    std::uint8_t* codes_ = nullptr;
    std::uint16_t* scales_ = nullptr;
    std::uint8_t* zeros_ = nullptr;
};

}  // namespace baichuan2
