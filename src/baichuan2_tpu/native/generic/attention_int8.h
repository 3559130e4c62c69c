// Flash attention over int8 keys and values, written once over eight floats and a set's products of integers.
//
// Keys and values were transformed before they were quantised (hadamard.h), which halves what int8 loses. So queries are
// transformed too, and in the end the result once more.
//
// Queries become 16-bit numbers with one scale each, and so do the weights of 64 keys once the values' scales are
// multiplied in: what is lost is what int8 keys and values lose, and nothing that could be measured beside it.
// A query's numbers are its own, so it gets the same bits whichever queries share its task.
//
//   score   = sum of integers * (key scale * query scale)
//   out     = out * correction + sum of integers * weight scale      once for every block of 64 keys
#pragma once

#include "generic/hadamard.h"
#include "generic/int8_dots.h"
#include "generic/quantize_row.h"
#include "generic/running_softmax.h"
#include "kernels.h"

namespace baichuan2 {

template <class Simd, class Dots>
class AttentionInt8 {
public:
    static void attend(const AttentionTask& task) { AttentionInt8(task).run(); }

private:
    explicit AttentionInt8(const AttentionTask& task)
        : task_(task),
          softmax_(task),
          size_(task.head_size),
          untransform_(1.0f / static_cast<float>(hadamard_length(size_))),
          out_(task.scratch),
          scores_(out_ + kMaxQueries * size_),
          sums_(reinterpret_cast<std::int32_t*>(scores_ + kKeyBlock)),
          queries_(reinterpret_cast<std::int16_t*>(sums_ + Dots::kRows * sum_stride(size_))),
          weights_(queries_ + kMaxQueries * size_) {}

    void run() {
        for (std::int64_t i = 0; i < task_.queries; ++i) {
            float numbers[kMaxRow];
            limit<Simd>(task_.query[i], size_, 1e30f, numbers);
            hadamard(numbers, size_);
            query_scale_[i] = quantize(numbers, size_, queries_ + i * size_, query_total_[i]) *
                              (task_.scale * untransform_);
            for (std::int64_t d = 0; d < size_; ++d) out_[i * size_ + d] = 0.0f;
        }
        const std::int64_t last = softmax_.last_key();
        for (std::int64_t first = 0; first <= last; first += kKeyBlock) {
            const std::int64_t count = last + 1 - first < kKeyBlock ? last + 1 - first : kKeyBlock;
            run_block(first, count);
        }
        for (std::int64_t i = 0; i < task_.queries; ++i) {
            const float scale = 1.0f / softmax_.sum(i) * untransform_;
            hadamard(out_ + i * size_, size_);
            for (std::int64_t d = 0; d < size_; ++d) task_.out[i][d] = out_[i * size_ + d] * scale;
        }
    }

    void run_block(std::int64_t first, std::int64_t count) {
        const std::int64_t start = first / kKeyBlock * Int8Block::bytes(size_);
        const Int8Block keys(task_.keys + start, size_), values(task_.values + start, size_);
        const std::int64_t stride = sum_stride(size_), ahead = 2 * Int8Block::bytes(size_);
        for (std::int64_t i = 0; i < task_.queries; i += Dots::kRows) {
            const std::int64_t left = task_.queries - i;
            const std::int64_t rows = left < Dots::kRows ? left : Dots::kRows;
            Dots::multiply({queries_ + i * size_, query_total_ + i, size_, rows, keys.codes, size_ / 4,
                            kKeyBlock, round_up(count, 8), ahead, sums_, stride});
            for (std::int64_t j = 0; j < rows; ++j) weigh(i + j, j, first, keys.scales, values.scales);
            Dots::multiply({weights_, weight_total_, kKeyBlock, rows, values.codes, round_up(count, 4) / 4,
                            size_, size_, ahead, sums_, stride});
            for (std::int64_t j = 0; j < rows; ++j) add_values(i + j, j);
        }
    }

    // Turn the sums of a row into weights, as numbers of 16 bits.
    void weigh(std::int64_t i, std::int64_t row, std::int64_t first, const float* key_scales,
               const float* value_scales) {
        const std::int32_t* sums = sums_ + row * sum_stride(size_);
        const float scale = query_scale_[i];
        // Behind the last key lie old sums: finite, and masked.
        for (std::int64_t j = 0; j < kKeyBlock; ++j) {
            scores_[j] = static_cast<float>(sums[j]) * (key_scales[j] * scale);
        }
        softmax_.weigh(i, first, scores_);
        for (std::int64_t j = 0; j < kKeyBlock; ++j) scores_[j] *= value_scales[j];
        weight_scale_[row] = quantize(scores_, kKeyBlock, weights_ + row * kKeyBlock, weight_total_[row]);
    }

    void add_values(std::int64_t i, std::int64_t row) {
        const std::int32_t* sums = sums_ + row * sum_stride(size_);
        float* out = out_ + i * size_;
        const float correction = softmax_.correction(i), scale = weight_scale_[row];
        for (std::int64_t d = 0; d < size_; ++d) {
            out[d] = out[d] * correction + static_cast<float>(sums[d]) * scale;
        }
    }

    static float quantize(const float* x, std::int64_t count, std::int16_t* numbers, std::int32_t& total) {
        float whole[kMaxRow];
        const float scale = to_whole_numbers<Simd>(x, count, static_cast<float>(kMostNumber), whole);
        total = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            const auto number = static_cast<std::int32_t>(whole[i]);
            numbers[i] = static_cast<std::int16_t>(number);
            total += number;
        }
        Dots::prepare(numbers, count);
        return scale;
    }

    static std::int64_t round_up(std::int64_t count, std::int64_t unit) {
        return (count + unit - 1) / unit * unit;
    }
    static std::int64_t sum_stride(std::int64_t size) { return size > kKeyBlock ? size : kKeyBlock; }

    const AttentionTask& task_;
    RunningSoftmax<Simd> softmax_;
    const std::int64_t size_;
    const float untransform_;
    float* const out_;
    float* const scores_;
    std::int32_t* const sums_;
    std::int16_t* const queries_;
    std::int16_t* const weights_;
    float query_scale_[kMaxQueries];
    std::int32_t query_total_[kMaxQueries];
    float weight_scale_[Dots::kRows];
    std::int32_t weight_total_[Dots::kRows];
};

}  // namespace baichuan2
