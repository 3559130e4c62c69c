// 16-bit numbers times int8 codes with AVX-512 VNNI: see generic/int8_dots.h for what they mean.
//
// A prepared row has the high bytes of its numbers first and their low bytes behind: number = 256 high + low, both
// signed. vpdpbusd adds 4 products of each of 16 lanes; high bytes go first, the sums move up by 8 bits, then the low
// bytes are added on top. The second pass finds the codes in the first cache.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "generic/int8_dots.h"
#include "generic/with_count.h"

namespace baichuan2 {

struct Avx512VnniDots {
    static constexpr int kRows = 6;

    static void prepare(std::int16_t* numbers, std::int64_t count) {
        std::int16_t plain[KvCache::kMaxHeadSize];
        std::memcpy(plain, numbers, static_cast<std::size_t>(count) * sizeof *plain);
        auto* high = reinterpret_cast<std::int8_t*>(numbers);
        std::int8_t* low = high + count;
        for (std::int64_t i = 0; i < count; ++i) {
            low[i] = static_cast<std::int8_t>(plain[i] & 255);
            high[i] = static_cast<std::int8_t>((plain[i] + 128) >> 8);
        }
    }

    static void multiply(const Int8DotTask& task) {
        with_count<kRows>(task.count, [&](auto rows) { multiply_rows<rows>(task); });
    }

private:
    static constexpr int kLanes = 16;  // of a vector

    // Vectors of lanes side by side: at most 24 sums, beside the codes and a factor.
    template <int Rows>
    static constexpr int kVectors = Rows > 3 ? 4 : 8;

    template <int Rows>
    static void multiply_rows(const Int8DotTask& task) {
        std::int64_t lane = 0;
        for (; lane + kVectors<Rows> * kLanes <= task.lanes; lane += kVectors<Rows> * kLanes) {
            multiply_lanes<Rows, kVectors<Rows>>(task, lane, 0xffff);
        }
        for (; lane + kLanes <= task.lanes; lane += kLanes) multiply_lanes<Rows, 1>(task, lane, 0xffff);
        if (lane < task.lanes) multiply_lanes<Rows, 1>(task, lane, 0x00ff);
    }

    template <int Rows, int Vectors>
    static void multiply_lanes(const Int8DotTask& task, std::int64_t lane, __mmask16 mask) {
        const auto* high = reinterpret_cast<const std::int8_t*>(task.rows);
        __m512i sums[Rows][Vectors];
#pragma GCC unroll 8
        for (int a = 0; a < Rows; ++a) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[a][v] = _mm512_setzero_si512();
        }
        add_bytes<Rows, Vectors, true>(task, high, lane, mask, sums);
#pragma GCC unroll 8
        for (int a = 0; a < Rows; ++a) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[a][v] = _mm512_maskz_slli_epi32(0xffff, sums[a][v], 8);
        }
        add_bytes<Rows, Vectors, false>(task, high + task.row_stride, lane, mask, sums);
#pragma GCC unroll 8
        for (int a = 0; a < Rows; ++a) {
            const __m512i zeros = _mm512_set1_epi32(kZeroCode * task.totals[a]);
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                _mm512_mask_storeu_epi32(task.sums + a * task.sum_stride + lane + v * kLanes, mask,
                                         _mm512_sub_epi32(sums[a][v], zeros));
            }
        }
    }

    // One byte of every number, for all steps.
    template <int Rows, int Vectors, bool IsFirst>
    static BAICHUAN2_INLINE void add_bytes(const Int8DotTask& task, const std::int8_t* bytes,
                                           std::int64_t lane, __mmask16 mask,
                                           __m512i (&sums)[Rows][Vectors]) {
        const std::uint8_t* codes = task.codes + lane * 4;
        for (std::int64_t step = 0; step < task.steps; ++step, codes += task.step_lanes * 4, bytes += 4) {
            __m512i column[Vectors];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                column[v] = _mm512_maskz_loadu_epi32(mask, codes + v * kLanes * 4);
                // Few rows wait for memory: codes to come are fetched while these are multiplied.
                if (IsFirst && Rows < kRows) _mm_prefetch(codes + v * kLanes * 4 + task.ahead, _MM_HINT_T1);
            }
#pragma GCC unroll 8
            for (int a = 0; a < Rows; ++a) {
                std::int32_t word;
                std::memcpy(&word, bytes + a * task.row_stride * 2, 4);
                const __m512i x = _mm512_set1_epi32(word);
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v) {
                    // Assembly, as in the matrix products: compilers move broadcasts ahead and spill the sums.
                    __asm__ volatile("vpdpbusd %[x], %[codes], %[sum]"
                                     : [sum] "+v"(sums[a][v])
                                     : [codes] "v"(column[v]), [x] "v"(x));
                }
            }
        }
    }
};

}  // namespace baichuan2
