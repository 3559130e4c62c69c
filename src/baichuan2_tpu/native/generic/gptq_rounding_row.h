// One row of GPTQ's rounding, written once over eight floats: see quantize/gptq_rounding.h.
//
// Products and sums are separate operations: a fused one would give other bits.
#pragma once

#include <cstring>

#include "generic/round_even.h"
#include "kernels.h"

namespace baichuan2 {

// values[i] += error * feedback[i]. Left to the compiler, which knows the vectors of the set it compiles for.
template <class Simd>
BAICHUAN2_INLINE void add_feedback(float error, const float* __restrict feedback, std::size_t count,
                                   float* __restrict values) {
    for (std::size_t i = 0; i < count; ++i) values[i] += error * feedback[i];
}

// `values` takes the row's columns and their corrections.
template <class Simd>
void round_row(const GptqBlock& block, std::size_t row, float* values) {
    const float levels = static_cast<float>((1 << block.bits) - 1);
    const std::size_t columns = block.columns, start = row * columns;
    const float* targets = block.targets + start;
    const float* scales = block.scales + row * block.groups;
    const std::uint8_t* zeros = block.zeros + row * block.groups;
    std::memcpy(values, block.values + start, columns * sizeof(float));
    for (std::size_t k = 0; k < columns; ++k) {
        const float scale = scales[block.group_of[k]];
        const float zero = static_cast<float>(zeros[block.group_of[k]]);
        float step = values[k] * (1.0f / scale);
        // Clipped first: the rounding takes numbers up to 2^22 only.
        step = step < -zero ? -zero : step;
        step = step > levels - zero ? levels - zero : step;
        step = round_even(step);
        const float error = targets[k] - scale * step;
        block.quantized[start + k] = static_cast<std::uint8_t>(static_cast<int>(step + zero));
        block.errors[start + k] = error;
        add_feedback<Simd>(error, block.feedback + k * columns + k + 1, columns - k - 1, values + k + 1);
    }
}

}  // namespace baichuan2
