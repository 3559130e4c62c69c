// Quantised weights times quantised activations with AVX-512 VNNI: exact integer sums, a float step per group.
//
// A vector holds a number of each of 16 rows: one block at 4 bits, two blocks at 8 bits. They make a strip.
//
// vpdpbusd adds 4 products of a code and an 8-bit activation per row:
//
//   4 bits:          |sum| <= 64 * 15 * 127 + 8 * 64 * 127 < 2^18
//   8 bits, narrow:  |sum| <= 64 * 255 * 127 + 128 * 64 * 127 < 2^22
//   8 bits, wide:    first the high bytes, for the tokens that have them, times 256, then the low bytes:
//                    |sum| <= 64 * 255 * 32639 + 128 * 64 * 32639 < 2^30
//
// The sums are those of AVX2, and so is every float operation: both sets give the same bits.
//
// Weights are unpacked on the way, for each tile anew: 2 instructions per vector, beside up to 16 products.
// That costs less than to unpack them once and read twice as much, as AVX2 does for long prompts.
//
// While a strip is multiplied, the next one is fetched into the second cache, in the order of memory: the two
// blocks of a strip lie far apart, and memory is slower where they are read in turns (8 bits, 4 tokens, one
// thread of a Zen 4: 18 against 23 GB/s).
//
// The inner step is assembly, as in AVX2: compilers move broadcasts ahead and spill the sums.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "avx512_vnni/activations_avx512_vnni.h"
#include "generic/with_count.h"
#include "kernels.h"

namespace baichuan2 {
namespace avx512_vnni {

constexpr std::int64_t kStrips = 4;  // that take turns with a tile
constexpr int kRows = 16;            // of a strip

template <int Bits>
constexpr std::int64_t kStripBlocks = Bits == 4 ? 1 : 2;

// Where a strip's weights of the next group lie. At the end of a task a strip of 8 bits may be a single block:
// both halves are then that block, and only the first is stored.
template <int Bits>
struct Strip {
    const std::uint8_t* codes[kStripBlocks<Bits>];
    const std::uint16_t* scales[kStripBlocks<Bits>];
    const std::uint8_t* zeros[kStripBlocks<Bits>];

    BAICHUAN2_INLINE Strip(const MatmulTask& task, std::int64_t block) {
        for (std::int64_t i = 0; i < kStripBlocks<Bits>; ++i) {
            const std::int64_t from = block + i < task.last_block ? block + i : block;
            codes[i] = task.matrix->codes(from);
            scales[i] = task.matrix->scales(from);
            zeros[i] = task.matrix->zeros(from);
        }
    }

    BAICHUAN2_INLINE void next_group() {
        for (std::int64_t i = 0; i < kStripBlocks<Bits>; ++i) {
            codes[i] += kGroupBytes;
            scales[i] += kRows / kStripBlocks<Bits>;
            zeros[i] += 8;
        }
    }
};

// Scales, and scales times (zero - bias), of a strip's rows in one group.
struct GroupScales {
    __m512 scale;
    __m512 zero;
};

template <int Bits>
BAICHUAN2_INLINE GroupScales load_scales(const Strip<Bits>& strip) {
    __m256i halves;
    __m128i zeros = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(strip.zeros[0]));
    if constexpr (Bits == 4) {
        halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(strip.scales[0]));
        zeros = _mm_and_si128(_mm_unpacklo_epi64(zeros, _mm_srli_epi16(zeros, 4)), _mm_set1_epi8(15));
    } else {
        halves = _mm256_set_m128i(_mm_loadu_si128(reinterpret_cast<const __m128i*>(strip.scales[1])),
                                  _mm_loadu_si128(reinterpret_cast<const __m128i*>(strip.scales[0])));
        zeros = _mm_unpacklo_epi64(zeros, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(strip.zeros[1])));
    }
    const __m512i zero =
        _mm512_sub_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(Bits == 4 ? 8 : 128));
    const __m512 scale = _mm512_cvtph_ps(halves);
    return {scale, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(zero))};
}

// The weights of step `step` of the strip's group.
template <int Bits>
BAICHUAN2_INLINE __m512i unpack_step(const Strip<Bits>& strip, int step) {
    const auto load = [&](int block) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(strip.codes[block] + step * kStepBytes));
    };
    if constexpr (Bits == 4) {
        const __m512i both = _mm512_broadcast_i64x4(load(0));
        const __m512i shifted = _mm512_mask_srli_epi32(both, 0xff00, both, 4);
        return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
    } else {
        return _mm512_inserti64x4(_mm512_castsi256_si512(load(0)), load(1), 1);
    }
}

// Add the products of one word of a token's codes.
BAICHUAN2_INLINE void add_products(const std::int32_t* word, __m512i weights, __m512i& sum) {
    __asm__ volatile("vpdpbusd %[x]%{1to16%}, %[w], %[sum]"
                     : [sum] "+v"(sum)
                     : [w] "v"(weights), [x] "m"(*word));
}

// Add 256 times the products of the high bytes of N tokens to their starts.
template <int N>
BAICHUAN2_INLINE void add_highs(const Strip<8>& strip, const std::int32_t* highs, const int (&tokens)[4],
                                __m512i* starts) {
    constexpr int kChains = 4 / N;  // sums of one token: a dot product waits for the one before
    __m512i sums[N][kChains];
    for (auto& chains : sums) {
        for (__m512i& sum : chains) sum = _mm512_setzero_si512();
    }
#pragma GCC unroll 16
    for (int step = 0; step < kGroup / kStepColumns; ++step) {
        const __m512i weights = unpack_step(strip, step);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i)
            add_products(highs + tokens[i] * kGroupWords + step, weights, sums[i][step % kChains]);
    }
    for (int i = 0; i < N; ++i) {
        __m512i sum = sums[i][0];
        for (int chain = 1; chain < kChains; ++chain) sum = _mm512_add_epi32(sum, sums[i][chain]);
        starts[tokens[i]] = _mm512_add_epi32(starts[tokens[i]], _mm512_slli_epi32(sum, 8));
    }
}

// The same for every token of the set `wide`. Not inlined: the sums of the caller need the registers.
__attribute__((noinline)) inline void add_wide_tokens(const Strip<8>& strip, const std::int32_t* highs,
                                                      unsigned wide, __m512i* starts) {
    while (wide != 0) {
        int tokens[4] = {};
        std::int64_t count = 0;
        for (; wide != 0 && count < 4; wide &= wide - 1) tokens[count++] = __builtin_ctz(wide);
        with_count<4>(count, [&](auto n) { add_highs<n>(strip, highs, tokens, starts); });
    }
}

// Replace the starts of T tokens, all wide, by those with 256 times the products of their high bytes.
template <int T>
BAICHUAN2_INLINE void add_all_highs(const Strip<8>& strip, const std::int32_t* highs, __m512i (&starts)[T]) {
    __m512i sums[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sums[t] = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int step = 0; step < kGroup / kStepColumns; ++step) {
        const __m512i weights = unpack_step(strip, step);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) add_products(highs + t * kGroupWords + step, weights, sums[t]);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) starts[t] = _mm512_add_epi32(starts[t], _mm512_slli_epi32(sums[t], 8));
}

// Where the sums of T tokens start in a group.
template <int Bits, int T>
BAICHUAN2_INLINE void start_sums(const Strip<Bits>& strip, const TileArrays& tile, std::int64_t group,
                                 __m512i (&sums)[T]) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sums[t] = _mm512_set1_epi32(tile.starts[group * T + t]);
    if constexpr (Bits == 8) {
        constexpr unsigned kAll = (1u << T) - 1;
        const __m512i flags = _mm512_maskz_loadu_epi32(kAll, tile.wide + group * T);
        const unsigned wide = _mm512_test_epi32_mask(flags, flags);
        const std::int32_t* highs = tile.highs + group * T * kGroupWords;
        if (wide == 0) return;
        if (wide == kAll) return add_all_highs(strip, highs, sums);
        __m512i starts[T];
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) starts[t] = sums[t];
        add_wide_tokens(strip, highs, wide, starts);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) sums[t] = starts[t];
    }
}

// Add a group's integer sums, scaled, to the float sums.
BAICHUAN2_INLINE __m512 add_group(__m512i sums, const GroupScales& scales, float x_scale, float x_offset,
                                  __m512 total) {
    // The activations' scale comes last: no part overflows where the whole does not.
    const __m512 codes = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scales.scale);
    const __m512 sum = _mm512_fmadd_ps(scales.zero, _mm512_set1_ps(x_offset), codes);
    return _mm512_fmadd_ps(sum, _mm512_set1_ps(x_scale), total);
}

// The rows of a strip that a task covers: all, or those of its first block.
template <int Bits>
BAICHUAN2_INLINE __mmask16 rows_of(const MatmulTask& task, std::int64_t block) {
    return block + kStripBlocks<Bits> <= task.last_block ? 0xffff : 0x00ff;
}

// One strip times one tile of T tokens.
template <int Bits, int T>
void multiply_strip(const MatmulTask& task, std::int64_t block, const TileArrays& tile, float* y) {
    Strip<Bits> strip(task, block);
    const std::int32_t* words = tile.words;
    const auto* next = reinterpret_cast<const char*>(task.matrix->codes(block + kStripBlocks<Bits>));
    __m512 totals[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) totals[t] = _mm512_setzero_ps();
    for (std::int64_t group = 0; group < task.matrix->groups(); ++group) {
        __m512i sums[T];
        start_sums(strip, tile, group, sums);
#pragma GCC unroll 16
        for (int step = 0; step < kGroup / kStepColumns; ++step, words += T) {
            if (Bits == 8 || step % 2 == 0) {
                _mm_prefetch(next, _MM_HINT_T1);
                next += 64;
            }
            const __m512i weights = unpack_step(strip, step);
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) add_products(words + t, weights, sums[t]);
        }
        const GroupScales scales = load_scales(strip);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
            totals[t] = add_group(sums[t], scales, tile.scales[group * T + t], tile.offsets[group * T + t],
                                  totals[t]);
        }
        strip.next_group();
    }
    const __mmask16 rows = rows_of<Bits>(task, block);
    float* out = y + block * (kRows / kStripBlocks<Bits>);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) _mm512_mask_storeu_ps(out + t * task.stride, rows, totals[t]);
}

// The words of step pair `pair` of a single token's group, each for 8 rows.
BAICHUAN2_INLINE __m512i pick_words(__m512i words, int pair) {
    const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(1), 1);
    return _mm512_permutexvar_epi32(_mm512_add_epi32(second, _mm512_set1_epi32(2 * pair)), words);
}

// The products of a group of one block and the words of a single token, two steps per vector. High nibbles
// are multiplied where they are, as 16 times their codes: |sum| <= 64 * 240 * 127 < 2^21.
template <int Bits>
BAICHUAN2_INLINE __m512i multiply_group(const std::uint8_t* codes, const std::int32_t* words) {
    const __m512i x = _mm512_load_si512(words);
    const __m512i low_nibbles = _mm512_set1_epi8(15);
    __m512i sums[2] = {}, highs[2] = {};  // a dot product waits for the one before
#pragma GCC unroll 8
    for (int pair = 0; pair < kGroup / kStepColumns / 2; ++pair) {
        const __m512i weights = _mm512_load_si512(codes + pair * 2 * kStepBytes);
        const __m512i picked = pick_words(x, pair);
        const __m512i first = Bits == 4 ? _mm512_and_si512(weights, low_nibbles) : weights;
        sums[pair % 2] = _mm512_dpbusd_epi32(sums[pair % 2], first, picked);
        if (Bits == 8) continue;
        highs[pair % 2] =
            _mm512_dpbusd_epi32(highs[pair % 2], _mm512_andnot_si512(low_nibbles, weights), picked);
    }
    const __m512i first = _mm512_add_epi32(sums[0], sums[1]);
    const __m512i second = Bits == 4 ? _mm512_add_epi32(highs[0], highs[1]) : first;
    // Each half of a vector has the sums of one step of the pairs.
    const __m512i even = _mm512_shuffle_i64x2(first, second, 0x44);
    const __m512i odd = _mm512_shuffle_i64x2(first, second, 0xee);
    const __m512i sum = _mm512_add_epi32(even, odd);
    return Bits == 4 ? _mm512_mask_srai_epi32(sum, 0xff00, sum, 4) : sum;
}

// One block times a tile of a single token, read straight on. At 8 bits prefetches slow it down (one thread
// of a Zen 4: 21 GB/s with them, 33 without). At 4 bits, where more instructions meet each byte, they help:
// 28.5 GB/s with them, 26.8 without, 25.3 by multiply_strip.
template <int Bits>
void multiply_token(const MatmulTask& task, std::int64_t block, const TileArrays& tile, float* y) {
    constexpr std::int64_t kPrefetchBytes = 4096;
    const std::uint8_t* codes = task.matrix->codes(block);
    MatmulTask single = task;
    single.last_block = block + 1;
    Strip<Bits> strip(single, block);  // at 8 bits both halves are the block, and only the first is stored
    __m512 total = _mm512_setzero_ps();
    for (std::int64_t group = 0; group < task.matrix->groups(); ++group, codes += kGroupBytes) {
        if (Bits == 4) {
#pragma GCC unroll 8
            for (int i = 0; i < kGroupBytes; i += 64) _mm_prefetch(codes + kPrefetchBytes + i, _MM_HINT_T0);
        }
        __m512i sums = multiply_group<Bits>(codes, tile.words + group * kGroupWords);
        if (Bits == 8 && tile.wide[group] != 0) {
            const __m512i highs = multiply_group<Bits>(codes, tile.highs + group * kGroupWords);
            sums = _mm512_add_epi32(sums, _mm512_slli_epi32(highs, 8));
        }
        sums = _mm512_add_epi32(sums, _mm512_set1_epi32(tile.starts[group]));
        total = add_group(sums, load_scales(strip), tile.scales[group], tile.offsets[group], total);
        strip.next_group();
    }
    _mm512_mask_storeu_ps(y + block * (kRows / kStripBlocks<Bits>), rows_of<Bits>(single, block), total);
}

// A tile is read once for a few strips, which stay in the second cache from tile to tile.
template <int Bits>
void matmul_bits(const MatmulTask& task, const Activations& x) {
    constexpr std::int64_t kBlocks = kStripBlocks<Bits>;
    if (x.tokens() == 1) {
        for (std::int64_t block = task.first_block; block < task.last_block; ++block)
            multiply_token<Bits>(task, block, open_tile(x.tile(0)), task.y);
        return;
    }
    for (std::int64_t first = task.first_block; first < task.last_block; first += kStrips * kBlocks) {
        const std::int64_t last = std::min(first + kStrips * kBlocks, task.last_block);
        for (std::int64_t index = 0; index < x.tiles(); ++index) {
            const TileArrays tile = open_tile(x.tile(index));
            float* y = task.y + x.tile_start(index) * task.stride;
            with_count<kTileTokens>(tile.stride, [&](auto tokens) {
                for (std::int64_t block = first; block < last; block += kBlocks) {
                    multiply_strip<Bits, tokens>(task, block, tile, y);
                }
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
    const __m512i weights = _mm512_set1_epi8(7);
    const std::int32_t x = 0x01020304;
    __m512i sums[kTileTokens] = {};
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int t = 0; t < kTileTokens; ++t) add_products(&x, weights, sums[t]);
    }
    return rounds * kTileTokens * 64;
}

}  // namespace avx512_vnni
}  // namespace baichuan2
