// A count that is known only at run time, as a constant:
// loops over it unroll, and their sums stay in registers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "float16.h"

namespace baichuan2 {

// Call body(std::integral_constant<int, count>()) for a count from 1 to Most.
template <int Most, class Body>
BAICHUAN2_INLINE void with_count(std::int64_t count, const Body& body) {
    if constexpr (Most > 1) {
        if (count < Most) return with_count<Most - 1>(count, body);
    }
    body(std::integral_constant<int, Most>());
}

}  // namespace baichuan2
