#include "thread_pool.h"

#include <algorithm>

namespace baichuan2 {
namespace {

// About 0.3 ms: longer than the gap between two loops, shorter than anybody would notice as a busy core.
constexpr int kSpins = 20000;
// The caller waits at the end of a loop; after this many spins it lets others have the core.
constexpr int kSpinsBeforeYield = 2000;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_stopping_ = true;
        ++epoch_;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run() {
    next_.store(0, std::memory_order_relaxed);
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    ++epoch_;  // sequentially consistent: a worker that misses it has already counted itself as a sleeper
    if (sleepers_ > 0) {
        { const std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    take_pieces(0);
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0; ++spins) {
        if (spins < kSpinsBeforeYield) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

void ThreadPool::work(int thread) {
    std::uint64_t seen = 0;
    for (;;) {
        for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) pause();
        if (epoch_ == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++sleepers_;
            wake_.wait(lock, [&] { return epoch_ != seen; });
            --sleepers_;
        }
        ++seen;
        if (is_stopping_) return;
        take_pieces(thread);
        running_.fetch_sub(1, std::memory_order_release);
    }
}

void ThreadPool::take_pieces(int thread) {
    for (;;) {
        const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
        if (begin >= count_) return;
        call_(context_, thread, begin, std::min(begin + grain_, count_));
    }
}

}  // namespace baichuan2
