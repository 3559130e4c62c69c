// Binding of the thread pool, so that tests can count who does the work.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "bind/bindings.h"
#include "thread_pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace baichuan2 {
namespace {

// Wait until a condition holds; give up after a while, so that a fault is a wrong count and no endless test.
template <class Condition>
void wait_until(const Condition& holds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!holds() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
}

// Run `loops` loops. In each one, worker `held` is stopped with the first piece it takes until all others are done;
// the others begin once it has one. Returns the pieces that each thread did.
std::vector<std::int64_t> count_pieces(int threads, std::int64_t count, std::int64_t grain, int held,
                                       int loops) {
    if (threads < 1 || count < 1 || grain < 1 || held < 0 || held >= threads) {
        throw std::invalid_argument("no such loop");
    }
    const nb::gil_scoped_release release;
    ThreadPool pool(threads);
    std::vector<std::atomic<std::int64_t>> done(static_cast<std::size_t>(threads));
    const std::int64_t pieces = (count + grain - 1) / grain;
    if (threads < 2 || pieces < threads) throw std::invalid_argument("a thread might get no piece");
    for (int loop = 0; loop < loops; ++loop) {
        std::atomic<bool> is_held{false};
        std::atomic<std::int64_t> finished{0};
        pool.parallel_for(count, grain, [&](int thread, std::int64_t, std::int64_t) {
            if (thread != held) {
                wait_until([&] { return is_held.load(); });
            } else if (!is_held.exchange(true)) {
                wait_until([&] { return finished == pieces - 1; });
            }
            ++done[static_cast<std::size_t>(thread)];
            ++finished;
        });
    }
    return {done.begin(), done.end()};
}

}  // namespace

void bind_threads(nb::module_& module) {
    module.def("count_pieces", &count_pieces, "threads"_a, "count"_a, "grain"_a, "held"_a, "loops"_a);
}

}  // namespace baichuan2
