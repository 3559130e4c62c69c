// Asymmetric group quantisation with a search for the range of least squared error.
//
// A group is `group_size` consecutive weights of a row; the last one of a row may be shorter. It gets a
// float16 scale, an integer zero, and one integer q per weight:
//
//     weight ~ scale * (q - zero)        0 <= q < 2^bits,  1 <= zero < 2^bits
//
// GPTQ stores zero - 1, and readers differ on what -1 means, so a zero of 0 is never used.
//
// A weight's squared error counts |weight| + mean |weight| of its group times. Without data that is the best
// guess of what it does to the output: the plain squared error clips the large weights that matter most (the
// demo model's perplexity rose by 38.9 % with it, by 31.8 % with the plain range and no search, by 30.9 %
// with this). Source of the weighting: the search of llama.cpp's K-quants. With data, the importance of every
// column is given in its place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace baichuan2 {

// Rows of weights, row-major, and what becomes of them.
struct QuantizedRows {
    const float* weights;  // [row][column]
    const float*
        importance;  // [column], by which squared errors are multiplied; null for the weighting above
    std::size_t rows;
    std::size_t columns;
    std::size_t group_size;
    int bits;
    std::uint8_t* quantized;  // [row][column]
    GroupRange* ranges;       // [row][group]
};

// Choose ranges and integers. Returns the index of the first weight that is not a number within kWeightLimit,
// or -1. The result is the same bits with all kernels.
std::ptrdiff_t quantize_rows(const Kernels& kernels, const QuantizedRows& rows);

}  // namespace baichuan2
