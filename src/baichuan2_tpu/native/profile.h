// Where a forward pass spends its time: wall time, bytes read and multiplications of each kind of work.
//
// Switched off, as it is unless somebody asks, it costs a comparison per kernel call.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace baichuan2 {

// In the order in which a layer runs them.
enum class Work {
    kEmbedding,
    kNorm,
    kQuantize,  // of activations
    kQkv,
    kKeysValues,  // rotate and store
    kAttention,
    kOutput,
    kGateUp,
    kSwiglu,
    kDown,
    kResidual,
    kHead,
    kCount,
};

constexpr const char* kWorkNames[] = {
    "embedding",
    "norms",
    "quantise activations",
    "queries, keys, values",
    "rotate, store",
    "attention",
    "output",
    "gate and up",
    "SwiGLU",
    "down",
    "add residual",
    "head",
};

struct WorkTotal {
    double seconds = 0;
    std::int64_t bytes = 0;  // of weights, keys and values
    std::int64_t macs = 0;
};

using Profile = std::array<WorkTotal, static_cast<std::size_t>(Work::kCount)>;

// Adds the time of its life to one kind of work; without a profile it does nothing.
class Stopwatch {
public:
    Stopwatch(Profile* profile, Work work, std::int64_t bytes = 0, std::int64_t macs = 0) {
        if (profile == nullptr) return;
        total_ = &(*profile)[static_cast<std::size_t>(work)];
        total_->bytes += bytes;
        total_->macs += macs;
        start_ = std::chrono::steady_clock::now();
    }
    ~Stopwatch() {
        if (total_ == nullptr) return;
        total_->seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;

private:
    WorkTotal* total_ = nullptr;
    std::chrono::steady_clock::time_point start_;
};

}  // namespace baichuan2
