// The part of the table that is written once over eight floats.
#pragma once

#include "generic/attention.h"
#include "generic/attention_int8.h"
#include "generic/elementwise.h"
#include "generic/gptq_rounding_row.h"
#include "generic/matmul_exact.h"
#include "generic/range_search_row.h"
#include "kernels.h"

namespace baichuan2 {

// A row of the table in which only the set's own kernels are missing. Constant: nothing runs at load time.
// Dots are the set's sums of products for attention over int8.
template <class Simd, class Dots = PlainDots>
constexpr Kernels generic_kernels(const char* name) {
    Kernels kernels{};
    kernels.name = name;
    kernels.matmul_exact = matmul_exact<Simd>;
    kernels.attend = Attention<Simd>::attend;
    kernels.attend_int8 = AttentionInt8<Simd, Dots>::attend;
    kernels.rms_norm = rms_norm<Simd>;
    kernels.swiglu = swiglu<Simd>;
    kernels.add = add<Simd>;
    kernels.rotate = rotate<Simd>;
    kernels.to_half = to_half<Simd>;
    kernels.from_half = from_half<Simd>;
    kernels.to_int8 = to_int8<Simd>;
    kernels.search_ranges = RangeSearch<Simd>::search_ranges;
    kernels.round_row = round_row<Simd>;
    return kernels;
}

}  // namespace baichuan2
