// Rounding of a block of columns, one after another: the columns behind each one make up for its error.
//
// For a row, with the scale s and the zero z of a column's group:
//
//     for column k of the block, in order:
//         q[k]     = clip(round(values[k] / s) + z, 0, 2^bits - 1)
//         error[k] = targets[k] - s * (q[k] - z)
//         values[j] += error[k] * feedback[k][j]        for every column j > k
//
// With the factors of a Cholesky decomposition for `feedback` this is GPTQ (Frantar et al., 2022) in the form
// of LDLQ (Chee et al., 2023); with rows of the Hessian it is coordinate descent. See quantize/gptq.py.
#pragma once

#include "kernels.h"

namespace baichuan2 {

// Round every row of the block. The result is the same bits with all kernels.
void round_with_feedback(const Kernels& kernels, const GptqBlock& block);

}  // namespace baichuan2
