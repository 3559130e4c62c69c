#include "measure.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "kernels.h"
#include "thread_pool.h"

namespace baichuan2 {
namespace {

constexpr int kPasses = 5;
constexpr std::int64_t kBytes = std::int64_t{1} << 30;
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;
constexpr std::int64_t kRounds = 2'000'000;

template <class Work>
double best_seconds(const Work& work) {
    double best = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        best = pass == 0 ? took.count() : std::min(best, took.count());
    }
    return best;
}

using Words = std::uint64_t __attribute__((vector_size(16)));

std::uint64_t read_words(const char* from, std::int64_t bytes) {
    const auto* words = reinterpret_cast<const Words*>(from);
    Words sums[4] = {};
    for (std::int64_t i = 0; i < bytes / static_cast<std::int64_t>(sizeof(Words)); i += 4) {
        __builtin_prefetch(words + i + 256);
        for (int j = 0; j < 4; ++j) sums[j] ^= words[i + j];
    }
    const Words sum = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]);
    return sum[0] ^ sum[1];
}

}  // namespace

double measure_read_bandwidth(int threads) {
    ThreadPool pool(threads);
    const Buffer buffer(kBytes);
    std::memset(buffer.data(), 1, kBytes);
    volatile std::uint64_t sink = 0;
    const double seconds = best_seconds([&] {
        pool.parallel_for(kBytes / kPieceBytes, 4, [&](int, std::int64_t begin, std::int64_t end) {
            sink = read_words(buffer.data() + begin * kPieceBytes, (end - begin) * kPieceBytes);
        });
    });
    return static_cast<double>(kBytes) / seconds;
}

double measure_multiply_peak(int threads, int bits, const std::string& kernels) {
    ThreadPool pool(threads);
    const Kernels& table = find_kernels(kernels);
    const std::int64_t pieces = 8 * threads;
    const double seconds = best_seconds([&] {
        pool.parallel_for(pieces, 1, [&](int, std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) table.multiply_rounds(bits, kRounds / pieces);
        });
    });
    return static_cast<double>(table.multiply_rounds(bits, 1) * (kRounds / pieces) * pieces) / seconds;
}

}  // namespace baichuan2
