// Rounding of a block of columns, one after another: each one's error is made up for by those behind it.
//
// For a row, with the scale s and the zero z of a column's group:
//
//     for column k of the block, in order:
//         q[k]     = clip(round(values[k] / s) + z, 0, 2^bits - 1)
//         error[k] = targets[k] - s * (q[k] - z)
//         values[j] += error[k] * feedback[k][j]        for every column j > k
//
// With the factors of a Cholesky decomposition for `feedback` this is GPTQ (Frantar et al., 2022) in the form
// of LDLQ (Chee et al., 2023); with rows of the Hessian it is coordinate descent. Both: quantize/gptq.py.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>

namespace baichuan2 {

// One block of `columns` columns; arrays are row-major. Column k belongs to group `group_of[k]`.
struct FeedbackBlock {
    std::size_t rows;
    std::size_t columns;
    std::size_t groups;
    const float* values;           // (rows, columns)
    const float* targets;          // (rows, columns)
    const float* feedback;         // (columns, columns), of which the part above the diagonal is used
    const float* scales;           // (rows, groups), above 0
    const std::uint8_t* zeros;     // (rows, groups)
    const std::int32_t* group_of;  // (columns)
    std::uint8_t* quantized;       // (rows, columns)
    float* errors;                 // (rows, columns)
};

// The result is the same bits on every machine: nothing is contracted to FMA.
void round_with_feedback(const FeedbackBlock& block, int bits);

void bind_error_feedback(nanobind::module_& module);

}  // namespace baichuan2
