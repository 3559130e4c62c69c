// The search of one row's ranges, written once over eight floats: see quantize/range_search.h.
//
// Sums run in eight lanes, and products and sums are separate operations:
// the result is the same bits with every instruction set.
#pragma once

#include <cmath>
#include <cstring>

#include "generic/round_even.h"
#include "kernels.h"

namespace baichuan2 {

template <class Simd>
class RangeSearch {
public:
    static bool search_ranges(const RangeSearchTask& task) {
        const float levels = static_cast<float>((1 << task.bits) - 1);
        const float step = task.bits == 4 ? kStep4 : kStep8;
        GroupRange* range = task.ranges;
        for (std::size_t start = 0; start < task.columns; start += task.group_size, ++range) {
            const std::size_t left = task.columns - start;
            const std::size_t count = left < task.group_size ? left : task.group_size;
            if (!are_allowed(task.weights + start, count)) return false;
            const Group group = copy_group(task, start, count);
            const Candidate best = search(group, levels, step);
            write_integers(group.weights, count, best, levels, task.quantized + start);
            *range = {best.half, static_cast<std::uint8_t>(best.zero)};
        }
        return true;
    }

private:
    using Floats = typename Simd::Floats;

    // Either end of the range is tried at 1, 1 - step, ... of its size. Finer steps or more of them gained
    // 0.05 % of the squared error at most, measured before weights counted by their size.
    static constexpr int kEnds = 5;
    static constexpr float kStep4 = 0.05f;
    static constexpr float kStep8 = 0.003f;
    // Least-squares fits of the scale to the integers, each followed by rounding again.
    static constexpr int kFits = 2;
    static constexpr float kSmallestScale = 5.9604644775390625e-08f;  // 2^-24, the smallest float16 above 0

    // A group's weights and how much the squared error of each counts, padded with zeros to a multiple of 8.
    struct Group {
        const float* weights;
        const float* importance;
        std::size_t padded;
    };

    // One way to quantise a group.
    struct Candidate {
        std::uint16_t half;
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

    static BAICHUAN2_INLINE float sum(Floats x) {
        float lanes[8];
        Simd::store(lanes, x);
        return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
               ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }

    static BAICHUAN2_INLINE bool are_allowed(const float* weights, std::size_t count) {
        int bad = 0;
        for (std::size_t i = 0; i < count; ++i) bad |= !(std::fabs(weights[i]) <= kWeightLimit);
        return bad == 0;
    }

    // Copy a group to the scratch: its weights, and behind them their importance.
    static BAICHUAN2_INLINE Group copy_group(const RangeSearchTask& task, std::size_t start,
                                             std::size_t count) {
        const std::size_t padded = (count + 7) / 8 * 8;
        float* weights = task.scratch;
        float* importance = task.scratch + padded;
        std::memcpy(weights, task.weights + start, count * sizeof(float));
        std::memset(weights + count, 0, (padded - count) * sizeof(float));
        if (task.importance == nullptr) {
            write_importance(weights, padded, count, importance);
        } else {
            std::memcpy(importance, task.importance + start, count * sizeof(float));
            std::memset(importance + count, 0, (padded - count) * sizeof(float));
        }
        return {weights, importance, padded};
    }

    // How much a weight counts without data: its magnitude and the mean of the group's.
    static BAICHUAN2_INLINE void write_importance(const float* weights, std::size_t padded, std::size_t count,
                                                  float* importance) {
        Floats magnitudes = Simd::all(0.0f);
        for (std::size_t i = 0; i < padded; i += 8) {
            const Floats weight = Simd::load(weights + i);
            magnitudes = Simd::add(magnitudes, Simd::max(weight, Simd::sub(Simd::all(0.0f), weight)));
        }
        const float mean = sum(magnitudes) / static_cast<float>(count);
        for (std::size_t i = 0; i < padded; ++i) importance[i] = std::fabs(weights[i]) + mean;
    }

    template <bool kForFit>
    static BAICHUAN2_INLINE Sums evaluate(const Group& group, const Candidate& candidate, float levels) {
        const Floats inverse = Simd::all(candidate.inverse), scale = Simd::all(candidate.scale);
        const Floats low = Simd::all(-candidate.zero), high = Simd::all(levels - candidate.zero);
        const Floats rounder = Simd::all(kRounder);
        Floats error = Simd::all(0.0f), weight_step = Simd::all(0.0f), step_step = Simd::all(0.0f);
        for (std::size_t i = 0; i < group.padded; i += 8) {
            const Floats weight = Simd::load(group.weights + i);
            const Floats importance = Simd::load(group.importance + i);
            Floats step = Simd::sub(Simd::add(Simd::mul(weight, inverse), rounder), rounder);
            step = Simd::min(high, Simd::max(low, step));
            const Floats difference = Simd::sub(weight, Simd::mul(scale, step));
            error = Simd::add(error, Simd::mul(Simd::mul(difference, difference), importance));
            if (kForFit) {
                weight_step = Simd::add(weight_step, Simd::mul(Simd::mul(weight, step), importance));
                step_step = Simd::add(step_step, Simd::mul(Simd::mul(step, step), importance));
            }
        }
        return {sum(error), kForFit ? sum(weight_step) : 0.0f, kForFit ? sum(step_step) : 0.0f};
    }

    static BAICHUAN2_INLINE Candidate with_scale(float scale, float zero) {
        const std::uint16_t half = float_to_half(scale < kSmallestScale ? kSmallestScale : scale);
        const float rounded = half_to_float(half);
        return {half, rounded, 1.0f / rounded, zero, 0.0f};
    }

    // The range [low, high], widened so that zero is an integer from 1 to `levels`.
    static BAICHUAN2_INLINE Candidate with_range(float low, float high, float levels) {
        const float reach = -high * (1.0f / (levels - 1.0f));
        if (reach < low) low = reach;
        Candidate candidate = with_scale((high - low) * (1.0f / levels), 0.0f);
        float zero = round_even(-low * candidate.inverse);
        if (zero < 1.0f) zero = 1.0f;
        if (zero > levels) zero = levels;
        candidate.zero = zero;
        return candidate;
    }

    static BAICHUAN2_INLINE Candidate search(const Group& group, float levels, float step) {
        float low = 0.0f, high = 0.0f;
        for (std::size_t i = 0; i < group.padded; ++i) {
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

    static BAICHUAN2_INLINE void write_integers(const float* weights, std::size_t count,
                                                const Candidate& best, float levels,
                                                std::uint8_t* quantized) {
        const float low = -best.zero, high = levels - best.zero;
        for (std::size_t i = 0; i < count; ++i) {
            float step = round_even(weights[i] * best.inverse);
            step = step < low ? low : step;
            step = step > high ? high : step;
            quantized[i] = static_cast<std::uint8_t>(static_cast<int>(step + best.zero));
        }
    }
};

}  // namespace baichuan2
