// Bindings of what quantises: shapes and groups are checked here, weights by the search itself.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bind/bindings.h"
#include "bind/numpy_array.h"
#include "quantize/gptq_rounding.h"
#include "quantize/range_search.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace baichuan2 {
namespace {

using ByteMatrix = NumpyArray<std::uint8_t, 2>;
using FloatVector = NumpyArray<float, 1>;
using GroupVector = NumpyArray<std::int32_t, 1>;

void check_bits(int bits) {
    if (bits != 4 && bits != 8) throw nb::value_error("bits must be 4 or 8");
}

[[noreturn]] void refuse_weight(const FloatMatrix& weights, std::size_t index) {
    const std::size_t columns = weights.shape(1);
    const std::string place =
        "row " + std::to_string(index / columns) + ", column " + std::to_string(index % columns);
    const std::string value = std::to_string(weights.data()[index]);
    throw nb::value_error((place + " is " + value + ", allowed is -65504 to 65504").c_str());
}

nb::tuple quantize_groups(const FloatMatrix& weights, int bits, std::size_t group_size,
                          const std::optional<FloatVector>& importance, const std::string& name) {
    const Kernels& kernels = find_kernels(name);
    check_bits(bits);
    if (group_size == 0) throw nb::value_error("group_size must be above 0");
    const std::size_t rows = weights.shape(0), columns = weights.shape(1);
    if (importance && importance->shape(0) != columns) {
        throw nb::value_error("importance must have one number per column");
    }
    const std::size_t groups = (columns + group_size - 1) / group_size;
    const auto quantized = new_array<std::uint8_t>(rows, columns);
    const auto scales = new_array<std::uint16_t>(rows, groups);
    const auto zeros = new_array<std::uint8_t>(rows, groups);
    std::ptrdiff_t bad = -1;
    {
        const nb::gil_scoped_release release;
        std::vector<GroupRange> ranges(rows * groups);
        bad = quantize_rows(kernels, {weights.data(), importance ? importance->data() : nullptr, rows,
                                      columns, group_size, bits, quantized.data(), ranges.data()});
        for (std::size_t i = 0; i < ranges.size(); ++i) {
            scales.data()[i] = ranges[i].scale;
            zeros.data()[i] = ranges[i].zero;
        }
    }
    if (bad >= 0) refuse_weight(weights, static_cast<std::size_t>(bad));
    return nb::make_tuple(quantized, scales, zeros);
}

template <class Matrix>
bool has_shape(const Matrix& matrix, std::size_t rows, std::size_t columns) {
    return matrix.shape(0) == rows && matrix.shape(1) == columns;
}

void check_groups(const GroupVector& group_of, std::size_t groups) {
    const auto is_group = [groups](std::int32_t group) {
        return group >= 0 && static_cast<std::size_t>(group) < groups;
    };
    if (!std::all_of(group_of.data(), group_of.data() + group_of.shape(0), is_group)) {
        throw nb::value_error("a column belongs to a group that has no scale");
    }
}

nb::tuple round_block(const FloatMatrix& values, const FloatMatrix& targets, const FloatMatrix& feedback,
                      const FloatMatrix& scales, const ByteMatrix& zeros, const GroupVector& group_of,
                      int bits, const std::string& name) {
    const Kernels& kernels = find_kernels(name);
    check_bits(bits);
    const std::size_t rows = values.shape(0), columns = values.shape(1), groups = scales.shape(1);
    const bool fits = has_shape(targets, rows, columns) && has_shape(feedback, columns, columns) &&
                      has_shape(scales, rows, groups) && has_shape(zeros, rows, groups) &&
                      group_of.shape(0) == columns;
    if (!fits) throw nb::value_error("the arrays of a block do not fit each other");
    check_groups(group_of, groups);
    const auto quantized = new_array<std::uint8_t>(rows, columns);
    const auto errors = new_array<float>(rows, columns);
    {
        const nb::gil_scoped_release release;
        round_with_feedback(kernels,
                            {rows, columns, groups, bits, values.data(), targets.data(), feedback.data(),
                             scales.data(), zeros.data(), group_of.data(), quantized.data(), errors.data()});
    }
    return nb::make_tuple(quantized, errors);
}

}  // namespace

void bind_quantize(nb::module_& module) {
    module.def("quantize_groups", &quantize_groups, nb::arg("weights").noconvert(), "bits"_a, "group_size"_a,
               nb::arg("importance").noconvert() = nb::none(), "kernels"_a = "",
               "Quantise every group of every row; without importance large weights count more.\n\n"
               "Shapes: weights (N, K) float32, importance (K,) float32 -> integers (N, K) uint8,\n"
               "scales (N, G) as float16 bits in uint16, zeros (N, G) uint8.\n"
               "Raises: ValueError naming the first weight beyond the limit.");
    module.def(
        "round_with_feedback", &round_block, nb::arg("values").noconvert(), nb::arg("targets").noconvert(),
        nb::arg("feedback").noconvert(), nb::arg("scales").noconvert(), nb::arg("zeros").noconvert(),
        nb::arg("group_of").noconvert(), "bits"_a, "kernels"_a = "",
        "Round a block of columns in order; each one's error corrects the columns behind it.\n\n"
        "Shapes: values and targets (N, B), feedback (B, B), scales and zeros (N, G), group_of (B,)\n"
        "-> integers (N, B) uint8, errors (N, B) float32. Raises: ValueError for arrays that do not fit.");
}

}  // namespace baichuan2
