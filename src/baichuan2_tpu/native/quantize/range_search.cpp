#include "quantize/range_search.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bind/numpy_array.h"
#include "quantize/clones.h"

namespace nb = nanobind;

namespace baichuan2 {
namespace {

constexpr int kLanes = 8;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// Either end of the range is tried at 1, 1 - step, ... of its size. Finer steps or more of them gained 0.05 %
// of the squared error at most, measured before weights counted by their size.
constexpr int kEnds = 5;
constexpr float kStep4 = 0.05f;
constexpr float kStep8 = 0.003f;
// Least-squares fits of the scale to the integers found, each followed by rounding again.
constexpr int kFits = 2;

constexpr float kSmallestScale = 5.9604644775390625e-08f;  // 2^-24, the smallest float16 above 0

BAICHUAN2_INLINE float sum(const Lanes& lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// A group's weights and how much the squared error of each counts, padded with zeros to whole lanes.
struct Group {
    const float* weights;
    const float* importance;
    size_t padded;
};

// How much a weight counts without data: its magnitude and the mean of the group's.
BAICHUAN2_INLINE void write_importance(const float* weights, size_t padded, size_t count, float* importance) {
    Lanes magnitudes{};
    for (size_t i = 0; i < padded; i += kLanes) {
        Lanes weight;
        std::memcpy(&weight, weights + i, sizeof weight);
        magnitudes += weight < 0.0f ? -weight : weight;
    }
    const float mean = sum(magnitudes) / static_cast<float>(count);
    for (size_t i = 0; i < padded; ++i) importance[i] = std::fabs(weights[i]) + mean;
}

// One way to quantise a group.
struct Candidate {
    uint16_t half;
    float scale;
    float inverse;
    float zero;
    float error;
};

// Sums over the group under one candidate: weighted squared error,
// and what a least-squares fit of the scale needs.
struct Sums {
    float error;
    float weight_step;
    float step_step;
};

template <bool kForFit>
BAICHUAN2_INLINE Sums evaluate(const Group& group, const Candidate& candidate, float levels) {
    const Lanes inverse = Lanes{} + candidate.inverse, scales = Lanes{} + candidate.scale;
    const Lanes low = Lanes{} - candidate.zero, high = Lanes{} + (levels - candidate.zero);
    Lanes error{}, weight_step{}, step_step{};
    for (size_t i = 0; i < group.padded; i += kLanes) {
        Lanes weight, importance;
        std::memcpy(&weight, group.weights + i, sizeof weight);
        std::memcpy(&importance, group.importance + i, sizeof importance);
        Lanes step = (weight * inverse + kRounder) - kRounder;
        step = step < low ? low : step;
        step = step > high ? high : step;
        const Lanes difference = weight - scales * step;
        error += difference * difference * importance;
        if (kForFit) {
            weight_step += weight * step * importance;
            step_step += step * step * importance;
        }
    }
    return {sum(error), kForFit ? sum(weight_step) : 0.0f, kForFit ? sum(step_step) : 0.0f};
}

BAICHUAN2_INLINE Candidate with_scale(float scale, float zero) {
    const uint16_t half = float_to_half(scale < kSmallestScale ? kSmallestScale : scale);
    const float rounded = half_to_float(half);
    return {half, rounded, 1.0f / rounded, zero, 0.0f};
}

// The range [low, high], widened so that zero is an integer from 1 to `levels`.
BAICHUAN2_INLINE Candidate with_range(float low, float high, float levels) {
    const float reach = -high * (1.0f / (levels - 1.0f));
    if (reach < low) low = reach;
    Candidate candidate = with_scale((high - low) * (1.0f / levels), 0.0f);
    float zero = round_even(-low * candidate.inverse);
    if (zero < 1.0f) zero = 1.0f;
    if (zero > levels) zero = levels;
    candidate.zero = zero;
    return candidate;
}

BAICHUAN2_INLINE Candidate search(const Group& group, float levels, float step) {
    float low = 0.0f, high = 0.0f;
    for (size_t i = 0; i < group.padded; ++i) {
        low = group.weights[i] < low ? group.weights[i] : low;
        high = group.weights[i] > high ? group.weights[i] : high;
    }
    Candidate best{};
    for (int i = 0; i < kEnds; ++i) {
        for (int j = 0; j < kEnds; ++j) {
            Candidate candidate = with_range(low * (1.0f - step * static_cast<float>(i)),
                                             high * (1.0f - step * static_cast<float>(j)), levels);
            candidate.error = evaluate<false>(group, candidate, levels).error;
            if ((i == 0 && j == 0) || candidate.error < best.error) best = candidate;
        }
    }
    for (int fit = 0; fit < kFits; ++fit) {
        const Sums sums = evaluate<true>(group, best, levels);
        if (!(sums.step_step > 0.0f) || !(sums.weight_step > 0.0f)) break;
        Candidate candidate = with_scale(sums.weight_step / sums.step_step, best.zero);
        candidate.error = evaluate<false>(group, candidate, levels).error;
        if (!(candidate.error < best.error)) break;
        best = candidate;
    }
    return best;
}

BAICHUAN2_INLINE void write_integers(const float* weights, size_t count, const Candidate& best, float levels,
                                     uint8_t* quantized) {
    const float low = -best.zero, high = levels - best.zero;
    for (size_t i = 0; i < count; ++i) {
        float step = round_even(weights[i] * best.inverse);
        step = step < low ? low : step;
        step = step > high ? high : step;
        quantized[i] = static_cast<uint8_t>(static_cast<int>(step + best.zero));
    }
}

BAICHUAN2_INLINE bool are_allowed(const float* weights, size_t count) {
    int bad = 0;
    for (size_t i = 0; i < count; ++i) bad |= !(std::fabs(weights[i]) <= kWeightLimit);
    return bad == 0;
}

// Quantises one row of groups through `buffer`, which holds the weights of a group padded with zeros to whole
// lanes, and behind them their importance.
BAICHUAN2_CLONES bool quantize_row(const float* weights, const float* importance, size_t columns,
                                   size_t group_size, int bits, float* buffer, uint8_t* quantized,
                                   GroupRange* ranges) {
    const float levels = static_cast<float>((1 << bits) - 1), step = bits == 4 ? kStep4 : kStep8;
    for (size_t start = 0; start < columns; start += group_size, ++ranges) {
        const size_t count = columns - start < group_size ? columns - start : group_size;
        const size_t padded = (count + kLanes - 1) / kLanes * kLanes;
        if (!are_allowed(weights + start, count)) return false;
        std::memcpy(buffer, weights + start, count * sizeof(float));
        std::memset(buffer + count, 0, (padded - count) * sizeof(float));
        float* own = buffer + padded;
        if (importance == nullptr) {
            write_importance(buffer, padded, count, own);
        } else {
            std::memcpy(own, importance + start, count * sizeof(float));
            std::memset(own + count, 0, (padded - count) * sizeof(float));
        }
        const Candidate best = search({buffer, own, padded}, levels, step);
        write_integers(buffer, count, best, levels, quantized + start);
        *ranges = {best.half, static_cast<uint8_t>(best.zero)};
    }
    return true;
}

}  // namespace

ptrdiff_t quantize_rows(const float* weights, const float* importance, size_t rows, size_t columns,
                        size_t group_size, int bits, uint8_t* quantized, GroupRange* ranges) {
    const size_t groups = (columns + group_size - 1) / group_size;
    std::vector<float> buffer(2 * (group_size + kLanes));
    for (size_t row = 0; row < rows; ++row) {
        const float* values = weights + row * columns;
        if (quantize_row(values, importance, columns, group_size, bits, buffer.data(),
                         quantized + row * columns, ranges + row * groups)) {
            continue;
        }
        for (size_t column = 0; column < columns; ++column) {
            if (!are_allowed(values + column, 1)) return static_cast<ptrdiff_t>(row * columns + column);
        }
    }
    return -1;
}

namespace {

using Weights = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using Importance = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::tuple quantize_groups(const Weights& weights, int bits, size_t group_size,
                          const std::optional<Importance>& importance) {
    if (bits != 4 && bits != 8) throw nb::value_error("bits must be 4 or 8");
    if (group_size == 0) throw nb::value_error("group_size must be above 0");
    const size_t rows = weights.shape(0), columns = weights.shape(1);
    if (importance && importance->shape(0) != columns) {
        throw nb::value_error("importance must have one number a column");
    }
    const size_t groups = (columns + group_size - 1) / group_size;
    std::unique_ptr<uint8_t[]> quantized(new uint8_t[rows * columns]), zeros(new uint8_t[rows * groups]);
    std::unique_ptr<uint16_t[]> scales(new uint16_t[rows * groups]);
    ptrdiff_t bad = -1;
    {
        nb::gil_scoped_release unlocked;
        std::vector<GroupRange> ranges(rows * groups);
        bad = quantize_rows(weights.data(), importance ? importance->data() : nullptr, rows, columns,
                            group_size, bits, quantized.get(), ranges.data());
        for (size_t i = 0; i < ranges.size(); ++i) {
            scales[i] = ranges[i].scale;
            zeros[i] = ranges[i].zero;
        }
    }
    if (bad >= 0) {
        const size_t index = static_cast<size_t>(bad);
        const std::string place =
            "row " + std::to_string(index / columns) + ", column " + std::to_string(index % columns);
        throw nb::value_error(
            (place + " is " + std::to_string(weights.data()[index]) + ", allowed is -65504 to 65504")
                .c_str());
    }
    return nb::make_tuple(give(std::move(quantized), rows, columns), give(std::move(scales), rows, groups),
                          give(std::move(zeros), rows, groups));
}

}  // namespace

void bind_range_search(nb::module_& module) {
    module.def("quantize_groups", &quantize_groups, nb::arg("weights").noconvert(), nb::arg("bits"),
               nb::arg("group_size"), nb::arg("importance").noconvert() = nb::none(),
               "Quantise every group of every row; without importance large weights count more.\n\n"
               "Shapes: weights (N, K) float32, importance (K,) float32 -> integers (N, K) uint8, scales (N, "
               "G) as float16 bits in uint16,\n"
               "zeros (N, G) uint8. Raises: ValueError naming the first weight beyond the limit.");
}

}  // namespace baichuan2
