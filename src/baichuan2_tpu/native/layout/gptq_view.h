// One linear layer as GPTQ stores it, in the memory of its checkpoint or of numpy.
//
// A word has 32 bits and holds 32 / bits codes, the first in its lowest bits:
//
//   qweight  words   [column / codes per word][row]            codes of neighbouring columns share a word
//   qzeros   words   [group][row / codes per word]             zero - 1; neighbouring rows share a word
//   scales   float16 [group][row]
//
//   weight[row][column] = scale * (code - zero),  with scale and zero of the column's group
#pragma once

#include <cstdint>

namespace baichuan2 {

struct GptqView {
    const std::uint32_t* qweight;
    const std::uint32_t* qzeros;
    const std::uint16_t* scales;
    std::int64_t columns;
    std::int64_t rows;
    std::int64_t group_size;  // in columns
};

}  // namespace baichuan2
