#include "quantize/range_search.h"

#include <cmath>
#include <vector>

namespace baichuan2 {

std::ptrdiff_t quantize_rows(const Kernels& kernels, const QuantizedRows& rows) {
    const std::size_t groups = (rows.columns + rows.group_size - 1) / rows.group_size;
    std::vector<float> scratch(range_search_scratch_floats(rows.group_size));
    for (std::size_t row = 0; row < rows.rows; ++row) {
        const std::size_t start = row * rows.columns;
        const bool is_done = kernels.search_ranges({rows.weights + start, rows.importance, rows.columns,
                                                    rows.group_size, rows.bits, rows.quantized + start,
                                                    rows.ranges + row * groups, scratch.data()});
        if (is_done) continue;
        for (std::size_t i = start; i < start + rows.columns; ++i) {
            if (!(std::fabs(rows.weights[i]) <= kWeightLimit)) return static_cast<std::ptrdiff_t>(i);
        }
    }
    return -1;
}

}  // namespace baichuan2
