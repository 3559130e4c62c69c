// Arrays of numpy: those that come in, checked against each other before a kernel sees them, and new ones.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "layout/gptq_view.h"
#include "layout/packed_matrix.h"

namespace baichuan2 {

// An array that is read: contiguous, its last axis fastest.
template <class Element, int Axes>
using NumpyArray =
    nanobind::ndarray<const Element, nanobind::ndim<Axes>, nanobind::c_contig, nanobind::device::cpu>;

// Signed words as numpy holds them; the bits are what counts.
using WordMatrix = NumpyArray<std::int32_t, 2>;
using HalfMatrix = NumpyArray<std::uint16_t, 2>;
using FloatMatrix = NumpyArray<float, 2>;

// Number of elements on an axis.
template <class Array>
std::int64_t size_of(const Array& array, std::size_t axis) {
    return static_cast<std::int64_t>(array.shape(axis));
}

// Memory that numpy will own; its elements are not set.
template <class Element>
struct NewMemory {
    explicit NewMemory(std::int64_t count)
        : data(new Element[static_cast<std::size_t>(count)]),
          owner(data, [](void* pointer) noexcept { delete[] static_cast<Element*>(pointer); }) {}

    Element* data;
    nanobind::capsule owner;
};

// A new array for numpy; its elements are not set.
template <class Element, class... Size>
auto new_array(Size... sizes) {
    const NewMemory<Element> memory((static_cast<std::int64_t>(sizes) * ...));
    return nanobind::ndarray<nanobind::numpy, Element, nanobind::ndim<sizeof...(Size)>>(
        memory.data, {static_cast<std::size_t>(sizes)...}, memory.owner);
}

inline GptqView view_gptq(const WordMatrix& qweight, const WordMatrix& qzeros, const HalfMatrix& scales,
                          int bits, std::int64_t group_size) {
    if (bits != 4 && bits != 8) throw std::invalid_argument("bits must be 4 or 8");
    if (group_size <= 0 || group_size % kGroup != 0)
        throw std::invalid_argument("group size must be a multiple of 64");
    const std::int64_t codes_per_word = 32 / bits;
    const std::int64_t columns = size_of(qweight, 0) * codes_per_word, rows = size_of(qweight, 1);
    const std::int64_t groups = (columns + group_size - 1) / group_size;
    const bool fits = size_of(scales, 0) == groups && size_of(scales, 1) == rows &&
                      size_of(qzeros, 0) == groups &&
                      size_of(qzeros, 1) == (rows + codes_per_word - 1) / codes_per_word;
    if (!fits) throw std::invalid_argument("qweight, qzeros and scales do not fit each other");
    return {reinterpret_cast<const std::uint32_t*>(qweight.data()),
            reinterpret_cast<const std::uint32_t*>(qzeros.data()),
            scales.data(),
            columns,
            rows,
            group_size};
}

}  // namespace baichuan2
