// A persistent pool that runs one loop at a time over all its threads.
//
// The caller is thread 0. Workers spin for a moment after each loop, as a forward pass issues hundreds of
// short ones, then sleep. A loop ends when its pieces are done, even where a worker has not noticed it: one that
// the system holds back costs nothing until it has taken a piece, and nobody waits for more than that piece.
// So there is no lock that a worker could hold. Loops must not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace baichuan2 {

class ThreadPool {
public:
    // Throws std::runtime_error with the number of threads that started, where the system refuses one.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Call body(thread, begin, end) for pieces of `grain` items that cover [0, count). Pieces go to whoever
    // is free: a thread that the system holds back must not hold back the others.
    template <class Body>
    void parallel_for(std::int64_t count, std::int64_t grain, Body&& body) {
        if (count <= grain || workers_.empty()) {
            if (count > 0) body(0, std::int64_t{0}, count);
            return;
        }
        using Plain = std::remove_reference_t<Body>;
        const Call call = [](void* context, int thread, std::int64_t begin, std::int64_t end) {
            (*static_cast<Plain*>(context))(thread, begin, end);
        };
        run(call, const_cast<void*>(static_cast<const void*>(&body)), count, grain);
    }

private:
    using Call = void (*)(void*, int, std::int64_t, std::int64_t);

    void run(Call call, void* context, std::int64_t count, std::int64_t grain);
    void work(int thread);
    void wait_for_loop(std::uint32_t seen);
    void wake_workers();
    void stop();  // and join the workers there are
    void take_pieces(int thread);

    // The loop that is open. Atomic because a late worker may read it while the next one is written; the
    // ticket then shows that what it read is out of date.
    std::atomic<Call> call_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<std::int64_t> count_{0};
    std::atomic<std::int64_t> grain_{1};
    // High half: the loop's number. Low half: the next piece, or all ones while no loop is open.
    alignas(64) std::atomic<std::uint64_t> ticket_{0xffffffff};
    alignas(64) std::atomic<std::int64_t> done_{0};
    // The loop's number once more: what workers spin and sleep on.
    alignas(64) std::atomic<std::uint32_t> loop_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> is_stopping_{false};
    std::vector<std::thread> workers_;
};

}  // namespace baichuan2
