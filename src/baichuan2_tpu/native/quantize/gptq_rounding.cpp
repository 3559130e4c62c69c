#include "quantize/gptq_rounding.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "bind/numpy_array.h"
#include "quantize/clones.h"

namespace nb = nanobind;

namespace baichuan2 {
namespace {

// Rounds one row through `values`, which holds its columns and takes the corrections.
BAICHUAN2_CLONES void round_row(const FeedbackBlock& block, std::size_t row, float levels, float* values) {
    const std::size_t columns = block.columns, start = row * columns;
    const float* targets = block.targets + start;
    const float* scales = block.scales + row * block.groups;
    const std::uint8_t* zeros = block.zeros + row * block.groups;
    std::memcpy(values, block.values + start, columns * sizeof(float));
    for (std::size_t k = 0; k < columns; ++k) {
        const float scale = scales[block.group_of[k]];
        const float zero = static_cast<float>(zeros[block.group_of[k]]);
        float step = values[k] * (1.0f / scale);
        // Clipped first: the rounding takes numbers up to 2^22 only.
        step = step < -zero ? -zero : step;
        step = step > levels - zero ? levels - zero : step;
        step = round_even(step);
        const float error = targets[k] - scale * step;
        block.quantized[start + k] = static_cast<std::uint8_t>(static_cast<int>(step + zero));
        block.errors[start + k] = error;
        const float* feedback = block.feedback + k * columns;
        for (std::size_t j = k + 1; j < columns; ++j) values[j] += error * feedback[j];
    }
}

}  // namespace

void round_with_feedback(const FeedbackBlock& block, int bits) {
    const float levels = static_cast<float>((1 << bits) - 1);
    std::vector<float> values(block.columns);
    for (std::size_t row = 0; row < block.rows; ++row) round_row(block, row, levels, values.data());
}

namespace {

template <typename T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Groups = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

bool have_shape(const Table<float>& table, std::size_t rows, std::size_t columns) {
    return table.shape(0) == rows && table.shape(1) == columns;
}

nb::tuple round_block(const Table<float>& values, const Table<float>& targets, const Table<float>& feedback,
                      const Table<float>& scales, const Table<std::uint8_t>& zeros, const Groups& group_of,
                      int bits) {
    const std::size_t rows = values.shape(0), columns = values.shape(1), groups = scales.shape(1);
    if (bits != 4 && bits != 8) throw nb::value_error("bits must be 4 or 8");
    const bool fits = have_shape(targets, rows, columns) && have_shape(feedback, columns, columns) &&
                      scales.shape(0) == rows && zeros.shape(0) == rows && zeros.shape(1) == groups &&
                      group_of.shape(0) == columns;
    if (!fits) throw nb::value_error("the arrays of a block do not fit each other");
    const auto is_group = [groups](std::int32_t one) {
        return one >= 0 && static_cast<std::size_t>(one) < groups;
    };
    if (!std::all_of(group_of.data(), group_of.data() + columns, is_group)) {
        throw nb::value_error("a column belongs to a group that has no scale");
    }
    std::unique_ptr<std::uint8_t[]> quantized(new std::uint8_t[rows * columns]);
    std::unique_ptr<float[]> errors(new float[rows * columns]);
    {
        nb::gil_scoped_release unlocked;
        round_with_feedback({rows, columns, groups, values.data(), targets.data(), feedback.data(),
                             scales.data(), zeros.data(), group_of.data(), quantized.get(), errors.get()},
                            bits);
    }
    return nb::make_tuple(give(std::move(quantized), rows, columns), give(std::move(errors), rows, columns));
}

}  // namespace

void bind_error_feedback(nb::module_& module) {
    module.def(
        "round_with_feedback", &round_block, nb::arg("values").noconvert(), nb::arg("targets").noconvert(),
        nb::arg("feedback").noconvert(), nb::arg("scales").noconvert(), nb::arg("zeros").noconvert(),
        nb::arg("group_of").noconvert(), nb::arg("bits"),
        "Round a block of columns in order; each one's error corrects the columns behind it.\n\n"
        "Shapes: values and targets (N, B), feedback (B, B), scales and zeros (N, G), group_of (B,) ->\n"
        "integers (N, B) uint8, errors (N, B) float32. Raises: ValueError for arrays that do not fit.");
}

}  // namespace baichuan2
