// Quantised weights times quantised activations with AVX-VNNI: the sums of AVX-512 VNNI in vectors of 8 rows.
//
//   4 bits: low and high nibbles are two vectors of rows
//   8 bits: even and odd steps of one vector of rows, in a sum each: a dot product waits for the one before
//
// The bounds of the sums are those of avx512_vnni/matmul_avx512_vnni.h, and every float operation is AVX2's:
// all give the same bits. The inner step is assembly, as in AVX2: compilers move loads ahead and spill the
// sums.
//
// The same instruction exists in AVX-512 VNNI for 256 bits, in another encoding. With
// BAICHUAN2_AVX_VNNI_AS_EVEX (CMakeLists.txt) this file uses that one, so that a processor without AVX-VNNI can
// run its tests.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "avx2/matmul_avx2.h"
#include "avx_vnni/activations_avx_vnni.h"
#include "generic/with_count.h"
#include "kernels.h"

#if defined(BAICHUAN2_AVX_VNNI_AS_EVEX)
#define BAICHUAN2_DOT "vpdpbusd "
#else
#define BAICHUAN2_DOT "%{vex%} vpdpbusd "
#endif

namespace baichuan2 {
namespace avx_vnni {

constexpr std::int64_t kBlocks = 8;  // that take turns with a tile

template <int Bits>
constexpr int kRowVectors = avx2::kRowVectors<Bits>;

BAICHUAN2_INLINE __m256i load_step(const std::uint8_t* codes, int step) {
    const auto& memory = *reinterpret_cast<const __m256i*>(codes + step * kStepBytes);
    __m256i weights;
    __asm__ volatile("vmovdqa %[memory], %[weights]" : [weights] "=x"(weights) : [memory] "m"(memory));
    return weights;
}

// Add the products of one word of a token's codes.
BAICHUAN2_INLINE void add_products(const std::int32_t* word, __m256i weights, __m256i& sum) {
    __m256i x;
    __asm__ volatile("vpbroadcastd %[word], %[x]\n\t" BAICHUAN2_DOT "%[x], %[w], %[sum]"
                     : [sum] "+x"(sum), [x] "=&x"(x)
                     : [w] "x"(weights), [word] "m"(*word));
}

// The same for two vectors of weights.
BAICHUAN2_INLINE void add_products(const std::int32_t* word, __m256i low, __m256i high, __m256i (&sums)[2]) {
    __m256i x;
    __asm__ volatile("vpbroadcastd %[word], %[x]\n\t" BAICHUAN2_DOT "%[x], %[low], %[sum0]\n\t" BAICHUAN2_DOT
                     "%[x], %[high], %[sum1]"
                     : [sum0] "+x"(sums[0]), [sum1] "+x"(sums[1]), [x] "=&x"(x)
                     : [low] "x"(low), [high] "x"(high), [word] "m"(*word));
}

// For each token of a group: 256 times the products of its high bytes, 0 where the group is narrow.
// Not inlined: the sums of the caller need the registers.
__attribute__((noinline)) inline void multiply_highs(const std::uint8_t* codes, const std::int32_t* highs,
                                                     const std::int32_t* wide, int tokens, __m256i* out) {
    for (int t = 0; t < tokens; ++t, highs += kGroupWords) {
        __m256i sums[4] = {};
        if (wide[t] != 0) {
#pragma GCC unroll 16
            for (int step = 0; step < kGroup / kStepColumns; ++step)
                add_products(highs + step, load_step(codes, step), sums[step % 4]);
        }
        const __m256i first = _mm256_add_epi32(sums[0], sums[1]), second = _mm256_add_epi32(sums[2], sums[3]);
        out[t] = _mm256_slli_epi32(_mm256_add_epi32(first, second), 8);
    }
}

// Where the sums of T tokens start in a group.
template <int Bits, int T>
BAICHUAN2_INLINE void start_sums(const std::uint8_t* codes, const TileArrays& tile, std::int64_t group,
                                 __m256i (&sums)[T][2]) {
    const std::int64_t at = group * T;
    std::int32_t any_wide = 0;
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
        sums[t][0] = _mm256_set1_epi32(tile.starts[at + t]);
        sums[t][1] = Bits == 4 ? sums[t][0] : _mm256_setzero_si256();
        if (Bits == 8) any_wide |= tile.wide[at + t];
    }
    if (any_wide == 0) return;
    __m256i highs[T];
    multiply_highs(codes, tile.highs + at * kGroupWords, tile.wide + at, T, highs);
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) sums[t][1] = highs[t];
}

// The integer sums of a group of one block and T tokens: of 16 rows at 4 bits, of 8 in two parts at 8 bits.
template <int Bits, int T>
BAICHUAN2_INLINE void multiply_group(const std::uint8_t* codes, const TileArrays& tile, std::int64_t group,
                                     __m256i (&sums)[T][2]) {
    const std::int32_t* words = tile.words + group * kGroupWords * T;
    start_sums<Bits>(codes, tile, group, sums);
#pragma GCC unroll 16
    for (int step = 0; step < kGroup / kStepColumns; ++step, words += T) {
        // A single token at 8 bits reads faster without: a plain loop on one thread of a Zen 4 reads 36 GB/s,
        // with prefetches 22.
        if (step % 2 == 0 && (Bits == 4 || T > 1)) {
            _mm_prefetch(reinterpret_cast<const char*>(codes) + step * kStepBytes + avx2::kPrefetchBytes,
                         _MM_HINT_T0);
        }
        if (Bits == 4) {
            __m256i low, high;
            avx2::unpack_step<4>(codes + step * kStepBytes, low, high);
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) add_products(words + t, low, high, sums[t]);
        } else {
            const __m256i weights = load_step(codes, step);
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) add_products(words + t, weights, sums[t][step % 2]);
        }
    }
}

// Add a group's integer sums, scaled, to the float sums of each vector of rows.
template <int Bits>
BAICHUAN2_INLINE void add_sums(const __m256i (&sums)[2], const avx2::GroupScales<Bits>& scales, float x_scale,
                               float x_offset, __m256 (&totals)[kRowVectors<Bits>]) {
    for (int v = 0; v < kRowVectors<Bits>; ++v) {
        const __m256i whole = Bits == 4 ? sums[v] : _mm256_add_epi32(sums[0], sums[1]);
        // The activations' scale comes last: no part overflows where the whole does not.
        const __m256 codes = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scales.scale[v]);
        const __m256 sum = _mm256_fmadd_ps(scales.zero[v], _mm256_set1_ps(x_offset), codes);
        totals[v] = _mm256_fmadd_ps(sum, _mm256_set1_ps(x_scale), totals[v]);
    }
}

// One block times one tile of T tokens.
template <int Bits, int T>
void multiply_block(const MatmulTask& task, std::int64_t block, const TileArrays& tile, float* y) {
    constexpr int kVectors = kRowVectors<Bits>;
    const PackedMatrix& matrix = *task.matrix;
    const std::uint8_t* codes = matrix.codes(block);
    __m256 totals[T][kVectors];
    for (auto& token : totals) {
        for (__m256& total : token) total = _mm256_setzero_ps();
    }
    for (std::int64_t group = 0; group < matrix.groups(); ++group, codes += kGroupBytes) {
        __m256i sums[T][2];
        multiply_group<Bits>(codes, tile, group, sums);
        const auto scales = avx2::load_scales<Bits>(matrix.scales(block) + group * 8 * kVectors,
                                                    matrix.zeros(block) + group * 8);
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
            add_sums<Bits>(sums[t], scales, tile.scales[group * T + t], tile.offsets[group * T + t],
                           totals[t]);
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < kVectors; ++v) {
            _mm256_storeu_ps(y + t * task.stride + (block * kVectors + v) * 8, totals[t][v]);
        }
    }
}

// A tile is read once for a few blocks, which stay in the second cache from tile to tile.
template <int Bits>
void matmul_bits(const MatmulTask& task, const Activations& x) {
    for (std::int64_t first = task.first_block; first < task.last_block; first += kBlocks) {
        const std::int64_t last = std::min(first + kBlocks, task.last_block);
        for (std::int64_t index = 0; index < x.tiles(); ++index) {
            const TileArrays tile = open_tile(x.tile(index));
            float* y = task.y + x.tile_start(index) * task.stride;
            with_count<kTileTokens>(tile.stride, [&](auto tokens) {
                for (std::int64_t block = first; block < last; ++block)
                    multiply_block<Bits, tokens>(task, block, tile, y);
            });
        }
    }
}

inline void matmul(const MatmulTask& task, const Activations& x) {
    if (task.matrix->bits() == 4) {
        matmul_bits<4>(task, x);
    } else {
        matmul_bits<8>(task, x);
    }
}

// Beside 8-bit weights, what narrow groups take.
inline std::int64_t multiply_rounds(int, std::int64_t rounds) {
    const __m256i weights = _mm256_set1_epi8(7);
    const std::int32_t x = 0x01020304;
    __m256i sums[kTileTokens][2] = {};
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 6
        for (int t = 0; t < kTileTokens; ++t) add_products(&x, weights, weights, sums[t]);
    }
    return rounds * kTileTokens * 2 * 32;
}

}  // namespace avx_vnni
}  // namespace baichuan2
