#include "thread_pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace baichuan2 {
namespace {

// About 0.3 ms: longer than the gap between two loops, shorter than anybody would notice as a busy core.
constexpr int kSpins = 20000;
// The caller waits at the end of a loop; after this many spins it lets others have the core.
constexpr int kSpinsBeforeYield = 2000;

// Low half of the ticket while no loop is open: more than the pieces of any loop.
constexpr std::uint64_t kClosed = 0xffffffff;

inline std::uint64_t loop_number(std::uint64_t ticket) { return ticket >> 32; }

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::exception& error) {
        const std::size_t started = workers_.size() + 1;
        stop();
        throw std::runtime_error("only " + std::to_string(started) + " of " + std::to_string(threads) +
                                 " threads started: " + error.what());
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_stopping_ = true;
        ticket_ = (loop_number(ticket_) + 1) << 32 | kClosed;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(Call call, void* context, std::int64_t count, std::int64_t grain) {
    const std::uint64_t number = loop_number(ticket_);
    ticket_ = number << 32 | kClosed;
    call_ = call;
    context_ = context;
    count_ = count;
    grain_ = grain;
    done_ = 0;
    ticket_ = (number + 1) << 32;  // a worker that misses it has already counted itself as a sleeper
    if (sleepers_ > 0) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_.notify_all();
    }
    take_pieces(0);
    const std::int64_t pieces = (count + grain - 1) / grain;
    for (int spins = 0; done_.load(std::memory_order_acquire) < pieces; ++spins) {
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
        for (int spins = 0; loop_number(ticket_.load(std::memory_order_acquire)) == seen && spins < kSpins;
             ++spins)
            pause();
        if (loop_number(ticket_) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++sleepers_;
            wake_.wait(lock, [&] { return loop_number(ticket_) != seen; });
            --sleepers_;
        }
        seen = loop_number(ticket_);
        if (is_stopping_) return;
        take_pieces(thread);
    }
}

void ThreadPool::take_pieces(int thread) {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
        const Call call = call_;
        void* const context = context_;
        const std::int64_t count = count_, grain = grain_;
        const auto begin = static_cast<std::int64_t>(ticket & kClosed) * grain;
        if ((ticket & kClosed) == kClosed || begin >= count) return;
        // Succeeds only while the loop that was read is open and this piece is free.
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
        call(context, thread, begin, std::min(begin + grain, count));
        done_.fetch_add(1, std::memory_order_release);
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

}  // namespace baichuan2
