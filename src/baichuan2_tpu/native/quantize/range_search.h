// Asymmetric group quantisation with a search for the range of least squared error.
//
// A group is `group_size` consecutive weights of a row; the last one of a row may be shorter. It gets a float16
// scale, an integer zero, and one integer q per weight:
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

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>

namespace baichuan2 {

// Weights beyond this are refused: no sound checkpoint has them, and float16 activations could not follow.
constexpr float kWeightLimit = 65504.0f;

// The group's best scale (float16 bits) and zero; `quantized` gets the integers.
struct GroupRange {
    uint16_t scale;
    uint8_t zero;
};

// Quantises rows of `columns` weights, row-major. `importance` has one number per column, by which its squared
// errors are multiplied, or is null for the weighting above. `quantized` has the shape of the weights,
// `ranges` one entry per group. Returns the index of the first weight that is not a number within the limit,
// or -1.
// The result is the same bits on every machine: sums run in 8 fixed lanes and nothing is contracted to FMA.
ptrdiff_t quantize_rows(const float* weights, const float* importance, size_t rows, size_t columns,
                        size_t group_size, int bits, uint8_t* quantized, GroupRange* ranges);

void bind_range_search(nanobind::module_& module);

}  // namespace baichuan2
