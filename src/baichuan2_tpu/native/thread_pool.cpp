#include "thread_pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
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

inline std::uint32_t loop_number(std::uint64_t ticket) { return static_cast<std::uint32_t>(ticket >> 32); }

// Sleep while the number is `seen`, or wake all who sleep. The system compares and sleeps in one step.
void call_futex(std::atomic<std::uint32_t>& number, int operation, std::uint32_t value) {
    static_assert(sizeof number == 4, "a futex is 32 bits");
    syscall(SYS_futex, &number, operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

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
    is_stopping_ = true;
    const std::uint32_t next = loop_number(ticket_) + 1;
    ticket_ = static_cast<std::uint64_t>(next) << 32 | kClosed;
    loop_ = next;
    wake_workers();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(Call call, void* context, std::int64_t count, std::int64_t grain) {
    const std::uint32_t number = loop_number(ticket_), next = number + 1;
    ticket_ = static_cast<std::uint64_t>(number) << 32 | kClosed;
    call_ = call;
    context_ = context;
    count_ = count;
    grain_ = grain;
    done_ = 0;
    ticket_ = static_cast<std::uint64_t>(next) << 32;
    loop_ = next;  // a worker that misses it has already counted itself as a sleeper
    wake_workers();
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

void ThreadPool::wake_workers() {
    if (sleepers_ > 0) call_futex(loop_, FUTEX_WAKE, INT_MAX);
}

void ThreadPool::wait_for_loop(std::uint32_t seen) {
    for (int spins = 0; spins < kSpins; ++spins) {
        if (loop_.load(std::memory_order_acquire) != seen) return;
        pause();
    }
    ++sleepers_;
    while (loop_ == seen) call_futex(loop_, FUTEX_WAIT, seen);
    --sleepers_;
}

void ThreadPool::work(int thread) {
    std::uint32_t seen = 0;
    for (;;) {
        wait_for_loop(seen);
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
