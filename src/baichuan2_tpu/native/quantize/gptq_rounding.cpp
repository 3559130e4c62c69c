#include "quantize/gptq_rounding.h"

#include <vector>

namespace baichuan2 {

void round_with_feedback(const Kernels& kernels, const GptqBlock& block) {
    std::vector<float> values(block.columns);
    for (std::size_t row = 0; row < block.rows; ++row) kernels.round_row(block, row, values.data());
}

}  // namespace baichuan2
