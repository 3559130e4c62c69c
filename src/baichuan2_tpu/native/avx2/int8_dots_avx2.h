// 16-bit numbers times int8 codes with AVX2: see generic/int8_dots.h for what they mean.
//
// A vector holds 4 lanes, whose codes are widened to 16 bits; vpmaddwd adds 2 products, so a lane has two sums, which
// are added at the end.
#pragma once

#include <immintrin.h>

#include "generic/int8_dots.h"
#include "generic/with_count.h"

namespace baichuan2 {

struct Avx2Dots {
    static constexpr int kRows = 6;

    static void prepare(std::int16_t* numbers, std::int64_t count) { PlainDots::prepare(numbers, count); }

    static void multiply(const Int8DotTask& task) {
        with_count<kRows>(task.count, [&](auto rows) { multiply_rows<rows>(task); });
    }

private:
    // Vectors of 4 lanes side by side, in pairs: at most 12 sums, beside the codes and a factor.
    template <int Rows>
    static constexpr int kVectors = Rows > 2 ? 2 : 4;

    template <int Rows>
    static void multiply_rows(const Int8DotTask& task) {
        constexpr int kLanes = 4 * kVectors<Rows>;
        std::int64_t lane = 0;
        for (; lane + kLanes <= task.lanes; lane += kLanes) multiply_lanes<Rows, kVectors<Rows>>(task, lane);
        for (; lane < task.lanes; lane += 8) multiply_lanes<Rows, 2>(task, lane);
    }

    template <int Rows, int Vectors>
    static BAICHUAN2_INLINE void multiply_lanes(const Int8DotTask& task, std::int64_t lane) {
        __m256i sums[Rows][Vectors];
        for (int a = 0; a < Rows; ++a) {
            for (int v = 0; v < Vectors; ++v) sums[a][v] = _mm256_setzero_si256();
        }
        const std::uint8_t* codes = task.codes + lane * 4;
        for (std::int64_t step = 0; step < task.steps; ++step, codes += task.step_lanes * 4) {
            // Few rows wait for memory: codes to come are fetched while these are multiplied.
            if (Rows < kRows) _mm_prefetch(codes + task.ahead, _MM_HINT_T1);
            __m256i column[Vectors];
            for (int v = 0; v < Vectors; ++v) {
                const auto* from = reinterpret_cast<const __m128i*>(codes + v * 16);
                column[v] = _mm256_cvtepu8_epi16(_mm_loadu_si128(from));
            }
            for (int a = 0; a < Rows; ++a) {
                const std::int16_t* numbers = task.rows + a * task.row_stride + step * 4;
                const __m256i x =
                    _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers)));
                for (int v = 0; v < Vectors; ++v) {
                    sums[a][v] = _mm256_add_epi32(sums[a][v], _mm256_madd_epi16(column[v], x));
                }
            }
        }
        for (int a = 0; a < Rows; ++a) {
            std::int32_t* out = task.sums + a * task.sum_stride + lane;
            const __m256i zeros = _mm256_set1_epi32(kZeroCode * task.totals[a]);
            for (int v = 0; v < Vectors; v += 2) {
                const __m256i mixed = _mm256_hadd_epi32(sums[a][v], sums[a][v + 1]);
                const __m256i lanes = _mm256_permute4x64_epi64(mixed, 0xd8);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + v * 4), _mm256_sub_epi32(lanes, zeros));
            }
        }
    }
};

}  // namespace baichuan2
