#include "layout/activations.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

namespace baichuan2 {

float find_wide_limit(const ActivationTile& tile, const float* largest, std::int64_t stride) {
    if (tile.weight_bits == 4) return std::numeric_limits<float>::infinity();
    if (tile.is_all_wide) return 0.0f;
    thread_local std::vector<float> values;
    values.resize(static_cast<std::size_t>(tile.groups));
    for (std::int64_t i = 0; i < tile.groups; ++i) values[static_cast<std::size_t>(i)] = largest[i * stride];
    const auto last_wide = values.begin() + (tile.groups - 1) / kGroupsPerWide;
    std::nth_element(values.begin(), last_wide, values.end(), std::greater<float>());
    return std::max(*last_wide, kSmallestGroup);  // zeros need no wide codes
}

}  // namespace baichuan2
