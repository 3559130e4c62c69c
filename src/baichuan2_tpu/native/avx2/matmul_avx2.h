// Quantised weights times quantised activations with AVX2: exact integer sums, one float step per group.
//
// 4 bits: low and high nibbles are two vectors of rows, times 8-bit codes, summed in 16 bits.
// 8 bits: even and odd columns of one vector of rows, 16-bit integers, times 16-bit codes, summed in 32 bits.
//
// Few tokens: weights are unpacked on the way, and the block stays in the first cache for all tiles.
// Many tokens: two blocks of up to 2048 columns are unpacked once into a panel in the second cache.
// Both run the same float operations in the same order.
//
// The inner step is assembly: GCC 12 moves the broadcasts of the intrinsic form ahead and spills the
// accumulators (44-81 against 150 GMAC/s per thread).
#pragma once

#include <immintrin.h>

#include "avx2/activations_avx2.h"
#include "generic/with_count.h"
#include "kernels.h"

namespace baichuan2 {
namespace avx2 {

constexpr std::int64_t kStreamTokens = 3 * kTileTokens;
constexpr std::int64_t kPanelBlocks = 2;
constexpr std::int64_t kPanelGroups = 2048 / kGroup;
constexpr std::int64_t kPanelBytes = kPanelGroups * kGroupBytes * 2;  // unpacked is twice as large
constexpr std::int64_t kPanelScaleBytes = kPanelGroups * 32 * 4;
constexpr std::int64_t kPrefetchBytes = 3072;  // 2048 to 4096 ahead measured 8 % faster than none

alignas(32) constexpr std::uint64_t kNibbles[4] = {0x0f0f0f0f0f0f0f0f, 0x0f0f0f0f0f0f0f0f, 0x0f0f0f0f0f0f0f0f,
                                                   0x0f0f0f0f0f0f0f0f};
alignas(32) constexpr std::uint64_t kEvenBytes[4] = {0x00ff00ff00ff00ff, 0x00ff00ff00ff00ff,
                                                     0x00ff00ff00ff00ff, 0x00ff00ff00ff00ff};

template <int Bits>
constexpr int kRowVectors = Bits == 4 ? 2 : 1;

// Scales, and scales times (zero - bias), of a block's rows in one group.
template <int Bits>
struct GroupScales {
    __m256 scale[kRowVectors<Bits>];
    __m256 zero[kRowVectors<Bits>];
};

template <int Bits>
BAICHUAN2_INLINE GroupScales<Bits> load_scales(const std::uint16_t* scales, const std::uint8_t* zeros) {
    GroupScales<Bits> out;
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros));
    for (int v = 0; v < kRowVectors<Bits>; ++v) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + v * 8));
        out.scale[v] = _mm256_cvtph_ps(halves);
        __m256i zero;
        if (Bits == 4) {
            const __m128i nibbles =
                _mm_and_si128(v == 0 ? bytes : _mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
            zero = _mm256_cvtepi8_epi32(_mm_sub_epi8(nibbles, _mm_set1_epi8(8)));
        } else {
            zero = _mm256_sub_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(128));
        }
        out.zero[v] = _mm256_mul_ps(out.scale[v], _mm256_cvtepi32_ps(zero));
    }
    return out;
}

template <int Bits>
BAICHUAN2_INLINE void unpack_step(const std::uint8_t* codes, __m256i& low, __m256i& high) {
    const auto& packed = *reinterpret_cast<const __m256i*>(codes);
    if (Bits == 4) {
        __asm__ volatile(
            "vmovdqa %[packed], %[low]\n\t"
            "vpsrlw $4, %[low], %[high]\n\t"
            "vpand %[mask], %[low], %[low]\n\t"
            "vpand %[mask], %[high], %[high]"
            : [low] "=&x"(low), [high] "=&x"(high)
            : [packed] "m"(packed), [mask] "m"(*reinterpret_cast<const __m256i*>(kNibbles)));
    } else {
        __asm__ volatile(
            "vmovdqa %[packed], %[low]\n\t"
            "vpsrlw $8, %[low], %[high]\n\t"
            "vpand %[mask], %[low], %[low]"
            : [low] "=&x"(low), [high] "=&x"(high)
            : [packed] "m"(packed), [mask] "m"(*reinterpret_cast<const __m256i*>(kEvenBytes)));
    }
}

// Add one token's products of a step.
template <int Bits>
BAICHUAN2_INLINE void add_products(__m256i low, __m256i high, const std::int8_t* x, __m256i (&sums)[2]) {
    __m256i first, second;
    if (Bits == 4) {
        // u4 x s8 pairs reach 2 * 15 * 127: the multiply never saturates
        __asm__ volatile(
            "vpbroadcastd %[x], %[first]\n\t"
            "vpmaddubsw %[first], %[low], %[second]\n\t"
            "vpmaddubsw %[first], %[high], %[first]\n\t"
            "vpaddw %[second], %[sum0], %[sum0]\n\t"
            "vpaddw %[first], %[sum1], %[sum1]"
            : [sum0] "+x"(sums[0]), [sum1] "+x"(sums[1]), [first] "=&x"(first), [second] "=&x"(second)
            : [low] "x"(low), [high] "x"(high), [x] "m"(*reinterpret_cast<const std::int32_t*>(x)));
    } else {
        __asm__ volatile(
            "vpbroadcastd %[x02], %[first]\n\t"
            "vpbroadcastd %[x13], %[second]\n\t"
            "vpmaddwd %[first], %[low], %[first]\n\t"
            "vpmaddwd %[second], %[high], %[second]\n\t"
            "vpaddd %[first], %[sum0], %[sum0]\n\t"
            "vpaddd %[second], %[sum1], %[sum1]"
            : [sum0] "+x"(sums[0]), [sum1] "+x"(sums[1]), [first] "=&x"(first), [second] "=&x"(second)
            : [low] "x"(low), [high] "x"(high), [x02] "m"(*reinterpret_cast<const std::int32_t*>(x)),
              [x13] "m"(*reinterpret_cast<const std::int32_t*>(x + 4)));
    }
}

template <int Bits>
BAICHUAN2_INLINE void start_sums(std::int32_t start, __m256i (&sums)[2]) {
    sums[0] = _mm256_set1_epi32(start);
    sums[1] = Bits == 4 ? sums[0] : _mm256_setzero_si256();
}

// Add a group's integer sums, scaled, to the float sums of each vector of rows.
template <int Bits>
BAICHUAN2_INLINE void add_group(const __m256i (&sums)[2], const GroupScales<Bits>& scales, float x_scale,
                                float x_offset, __m256 (&totals)[kRowVectors<Bits>]) {
    for (int v = 0; v < kRowVectors<Bits>; ++v) {
        const __m256i whole =
            Bits == 4 ? _mm256_madd_epi16(sums[v], _mm256_set1_epi16(1)) : _mm256_add_epi32(sums[0], sums[1]);
        // The activations' scale comes last: no part overflows where the whole does not.
        const __m256 codes = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scales.scale[v]);
        const __m256 sum = _mm256_fmadd_ps(scales.zero[v], _mm256_set1_ps(x_offset), codes);
        totals[v] = _mm256_fmadd_ps(sum, _mm256_set1_ps(x_scale), totals[v]);
    }
}

// One block and one tile of T tokens, straight from the packed codes.
template <int Bits, int T>
void stream_block(const PackedMatrix& matrix, std::int64_t block, const TileArrays& tile, float* y,
                  std::int64_t stride) {
    constexpr int kVectors = kRowVectors<Bits>;
    const std::uint8_t* codes = matrix.codes(block);
    const std::uint16_t* scales = matrix.scales(block);
    const std::uint8_t* zeros = matrix.zeros(block);
    const std::int8_t* x = tile.codes;
    __m256 totals[T][kVectors];
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < kVectors; ++v) totals[t][v] = _mm256_setzero_ps();
    }
    for (std::int64_t group = 0; group < matrix.groups(); ++group) {
        __m256i sums[T][2];
        for (int t = 0; t < T; ++t) start_sums<Bits>(tile.starts[group * T + t], sums[t]);
#pragma GCC unroll 16
        for (int step = 0; step < kGroup / kStepColumns; ++step) {
            __m256i low, high;
            if (step % 2 == 0)
                _mm_prefetch(reinterpret_cast<const char*>(codes) + kPrefetchBytes, _MM_HINT_T0);
            unpack_step<Bits>(codes, low, high);
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) add_products<Bits>(low, high, x + t * kStepCodeBytes<Bits>, sums[t]);
            codes += kStepBytes;
            x += T * kStepCodeBytes<Bits>;
        }
        const GroupScales<Bits> group_scales = load_scales<Bits>(scales, zeros);
        for (int t = 0; t < T; ++t) {
            add_group<Bits>(sums[t], group_scales, tile.scales[group * T + t], tile.offsets[group * T + t],
                            totals[t]);
        }
        scales += 8 * kVectors;
        zeros += 8;
    }
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < kVectors; ++v)
            _mm256_storeu_ps(y + t * stride + (block * kVectors + v) * 8, totals[t][v]);
    }
}

// One block's part in a panel.
struct Panel {
    std::uint8_t* codes;  // [step][low, high][32]
    float* scales;        // [group][scale vectors, zero vectors][8]
};

template <int Bits>
void unpack_panel(const PackedMatrix& matrix, std::int64_t block, std::int64_t first_group,
                  std::int64_t groups, const Panel& panel) {
    constexpr int kVectors = kRowVectors<Bits>;
    const std::uint8_t* codes = matrix.codes(block) + first_group * kGroupBytes;
    for (std::int64_t step = 0; step < groups * kGroup / kStepColumns; ++step) {
        __m256i low, high;
        _mm_prefetch(reinterpret_cast<const char*>(codes + step * kStepBytes) + kPrefetchBytes, _MM_HINT_T0);
        unpack_step<Bits>(codes + step * kStepBytes, low, high);
        _mm256_store_si256(reinterpret_cast<__m256i*>(panel.codes + step * 64), low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(panel.codes + step * 64 + 32), high);
    }
    const std::uint16_t* scales = matrix.scales(block) + first_group * 8 * kVectors;
    const std::uint8_t* zeros = matrix.zeros(block) + first_group * 8;
    for (std::int64_t group = 0; group < groups; ++group) {
        const auto group_scales = load_scales<Bits>(scales + group * 8 * kVectors, zeros + group * 8);
        float* out = panel.scales + group * 16 * kVectors;
        for (int v = 0; v < kVectors; ++v) {
            _mm256_store_ps(out + v * 8, group_scales.scale[v]);
            _mm256_store_ps(out + (kVectors + v) * 8, group_scales.zero[v]);
        }
    }
}

// One block and one tile of T tokens out of a panel, from the tile's group `first_group` on.
// totals[T][row vectors][8] are added to.
template <int Bits, int T>
void panel_block(const Panel& panel, std::int64_t first_group, std::int64_t groups, const TileArrays& tile,
                 float* totals) {
    constexpr int kVectors = kRowVectors<Bits>;
    const std::uint8_t* codes = panel.codes;
    const std::int8_t* x = tile.codes + first_group * kGroup * T * code_bytes(Bits);
    const float* x_scales = tile.scales + first_group * T;
    const float* x_offsets = tile.offsets + first_group * T;
    const std::int32_t* starts = tile.starts + first_group * T;
    for (std::int64_t group = 0; group < groups; ++group) {
        __m256i sums[T][2];
        for (int t = 0; t < T; ++t) start_sums<Bits>(starts[group * T + t], sums[t]);
#pragma GCC unroll 16
        for (int step = 0; step < kGroup / kStepColumns; ++step) {
            const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes));
            const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes + 32));
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) add_products<Bits>(low, high, x + t * kStepCodeBytes<Bits>, sums[t]);
            codes += 2 * kStepBytes;
            x += T * kStepCodeBytes<Bits>;
        }
        GroupScales<Bits> scales;
        for (int v = 0; v < kVectors; ++v) {
            scales.scale[v] = _mm256_load_ps(panel.scales + (group * 2 * kVectors + v) * 8);
            scales.zero[v] = _mm256_load_ps(panel.scales + (group * 2 * kVectors + kVectors + v) * 8);
        }
        for (int t = 0; t < T; ++t) {
            __m256 total[kVectors];
            for (int v = 0; v < kVectors; ++v) total[v] = _mm256_load_ps(totals + (t * kVectors + v) * 8);
            add_group<Bits>(sums[t], scales, x_scales[group * T + t], x_offsets[group * T + t], total);
            for (int v = 0; v < kVectors; ++v) _mm256_store_ps(totals + (t * kVectors + v) * 8, total[v]);
        }
    }
}

template <int Bits>
void matmul_stream(const MatmulTask& task, const Activations& x) {
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
        for (std::int64_t index = 0; index < x.tiles(); ++index) {
            const TileArrays tile = open_tile(x.tile(index));
            float* y = task.y + x.tile_start(index) * task.stride;
            with_count<kTileTokens>(tile.stride, [&](auto tokens) {
                stream_block<Bits, tokens>(*task.matrix, block, tile, y, task.stride);
            });
        }
    }
}

// Blocks [first, first + count), count at most kPanelBlocks.
template <int Bits>
void matmul_panel(const MatmulTask& task, const Activations& x, std::int64_t first, std::int64_t count) {
    constexpr int kRows = 8 * kRowVectors<Bits>;
    const auto panel = [&](std::int64_t i) {
        char* start = task.scratch + i * (kPanelBytes + kPanelScaleBytes);
        return Panel{reinterpret_cast<std::uint8_t*>(start), reinterpret_cast<float*>(start + kPanelBytes)};
    };
    float* totals = reinterpret_cast<float*>(task.scratch + kPanelBlocks * (kPanelBytes + kPanelScaleBytes));
    for (std::int64_t i = 0; i < count * x.tokens() * kRows; ++i) totals[i] = 0.0f;
    for (std::int64_t group = 0; group < x.groups(); group += kPanelGroups) {
        const std::int64_t groups = x.groups() - group < kPanelGroups ? x.groups() - group : kPanelGroups;
        for (std::int64_t i = 0; i < count; ++i)
            unpack_panel<Bits>(*task.matrix, first + i, group, groups, panel(i));
        for (std::int64_t index = 0; index < x.tiles(); ++index) {
            const TileArrays tile = open_tile(x.tile(index));
            for (std::int64_t i = 0; i < count; ++i) {
                float* out = totals + (i * x.tokens() + x.tile_start(index)) * kRows;
                with_count<kTileTokens>(tile.stride, [&](auto tokens) {
                    panel_block<Bits, tokens>(panel(i), group, groups, tile, out);
                });
            }
        }
    }
    for (std::int64_t token = 0; token < x.tokens(); ++token) {
        for (std::int64_t i = 0; i < count; ++i) {
            const float* from = totals + (i * x.tokens() + token) * kRows;
            float* to = task.y + token * task.stride + (first + i) * kRows;
            for (int row = 0; row < kRows; ++row) to[row] = from[row];
        }
    }
}

template <int Bits>
void matmul_bits(const MatmulTask& task, const Activations& x) {
    if (x.tokens() <= kStreamTokens) return matmul_stream<Bits>(task, x);
    for (std::int64_t block = task.first_block; block < task.last_block; block += kPanelBlocks) {
        const std::int64_t left = task.last_block - block;
        matmul_panel<Bits>(task, x, block, left < kPanelBlocks ? left : kPanelBlocks);
    }
}

inline std::int64_t scratch_bytes(std::int64_t tokens) {
    return kPanelBlocks * (kPanelBytes + kPanelScaleBytes + tokens * 16 * 4);
}

inline void matmul(const MatmulTask& task, const Activations& x) {
    if (task.matrix->bits() == 4) {
        matmul_bits<4>(task, x);
    } else {
        matmul_bits<8>(task, x);
    }
}

template <int Bits>
void multiply_registers(std::int64_t rounds) {
    const __m256i weights = _mm256_set1_epi8(7);
    const std::int64_t x = 0x0001000200030004;
    __m256i sums[kTileTokens][2] = {};
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 6
        for (int t = 0; t < kTileTokens; ++t) {
            add_products<Bits>(weights, weights, reinterpret_cast<const std::int8_t*>(&x), sums[t]);
        }
    }
}

inline std::int64_t multiply_rounds(int bits, std::int64_t rounds) {
    if (bits == 4) {
        multiply_registers<4>(rounds);
    } else {
        multiply_registers<8>(rounds);
    }
    return rounds * kTileTokens * 2 * (bits == 4 ? 32 : 16);
}

}  // namespace avx2
}  // namespace baichuan2
