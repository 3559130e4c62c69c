// A new array for numpy.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <memory>

namespace baichuan2 {

// Hand `data` of `rows` times `columns` elements over to numpy.
template <typename T>
nanobind::ndarray<nanobind::numpy, T, nanobind::ndim<2>> give(std::unique_ptr<T[]> data, std::size_t rows,
                                                              std::size_t columns) {
    T* raw = data.get();
    nanobind::capsule owner(raw, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
    data.release();
    return {raw, {rows, columns}, owner};
}

}  // namespace baichuan2
