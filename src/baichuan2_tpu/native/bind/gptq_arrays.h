// GPTQ arrays from numpy: checked against each other before a kernel sees them.
#pragma once

#include <nanobind/ndarray.h>

#include <stdexcept>

#include "layout/packed_matrix.h"

namespace baichuan2 {

// Signed words as numpy holds them; the bits are what counts.
using WordArray =
    nanobind::ndarray<const std::int32_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using HalfArray =
    nanobind::ndarray<const std::uint16_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using FloatArray =
    nanobind::ndarray<const float, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

inline GptqView view_gptq(const WordArray& qweight, const WordArray& qzeros, const HalfArray& scales,
                          int bits, std::int64_t group_size) {
    if (bits != 4 && bits != 8) throw std::invalid_argument("bits must be 4 or 8");
    if (group_size <= 0 || group_size % kGroup != 0)
        throw std::invalid_argument("group size must be a multiple of 64");
    const auto per_word = static_cast<std::size_t>(32 / bits);
    const std::size_t columns = qweight.shape(0) * per_word, rows = qweight.shape(1);
    const std::size_t groups =
        (columns + static_cast<std::size_t>(group_size) - 1) / static_cast<std::size_t>(group_size);
    const bool fits = scales.shape(0) == groups && scales.shape(1) == rows && qzeros.shape(0) == groups &&
                      qzeros.shape(1) == (rows + per_word - 1) / per_word;
    if (!fits) throw std::invalid_argument("qweight, qzeros and scales do not fit each other");
    return {reinterpret_cast<const std::uint32_t*>(qweight.data()),
            reinterpret_cast<const std::uint32_t*>(qzeros.data()),
            scales.data(),
            static_cast<std::int64_t>(columns),
            static_cast<std::int64_t>(rows),
            group_size};
}

}  // namespace baichuan2
