// The softmax of a task's queries over blocks of 64 keys: maximum, sum, and the correction of what came before.
#pragma once

#include "generic/elementwise.h"
#include "kernels.h"

namespace baichuan2 {

template <class Simd>
class RunningSoftmax {
    using Floats = typename Simd::Floats;
    static constexpr float kMasked = -1e30f;

public:
    explicit RunningSoftmax(const AttentionTask& task) : task_(task) {
        for (std::int64_t i = 0; i < task.queries; ++i) {
            most_[i] = kMasked;
            sum_[i] = 0.0f;
        }
    }

    // The last key that any query sees.
    std::int64_t last_key() const {
        std::int64_t last = 0;
        for (std::int64_t i = 0; i < task_.queries; ++i) {
            last = task_.position[i] > last ? task_.position[i] : last;
        }
        return last;
    }

    float sum(std::int64_t i) const { return sum_[i]; }
    // What query i's weighted values of all blocks before are to be multiplied with.
    float correction(std::int64_t i) const { return correction_[i]; }

    // Turn query i's scores of the block that begins at key `first` into weights. A masked key's is exactly 0.
    BAICHUAN2_INLINE void weigh(std::int64_t i, std::int64_t first, float* scores) {
        const std::int64_t seen = task_.position[i] + 1 - first;
        if (task_.slope[i] != 0.0f) {
            for (std::int64_t j = 0; j < kKeyBlock; ++j) {
                scores[j] += task_.slope[i] * static_cast<float>(first + j - task_.position[i]);
            }
        }
        for (std::int64_t j = seen < 0 ? 0 : seen; j < kKeyBlock; ++j) scores[j] = kMasked;
        Floats most = Simd::load(scores);
        for (std::int64_t j = 8; j < kKeyBlock; j += 8) most = Simd::max(most, Simd::load(scores + j));
        const float new_most = Simd::largest(Simd::max(most, Simd::all(most_[i])));
        float correction[8];
        Simd::store(correction, exponential<Simd>(Simd::all(most_[i] - new_most)));
        Floats sum = Simd::all(0.0f);
        for (std::int64_t j = 0; j < kKeyBlock; j += 8) {
            const Floats weight = exponential<Simd>(Simd::sub(Simd::load(scores + j), Simd::all(new_most)));
            sum = Simd::add(sum, weight);
            Simd::store(scores + j, weight);
        }
        most_[i] = new_most;
        sum_[i] = sum_[i] * correction[0] + Simd::sum(sum);
        correction_[i] = correction[0];
    }

private:
    const AttentionTask& task_;
    float most_[kMaxQueries];
    float sum_[kMaxQueries];
    float correction_[kMaxQueries];
};

}  // namespace baichuan2
