// Quantised weights times quantised activations, for every Arm set `Dots`: exact integer sums, a float step
// per group. How a group's integers are multiplied is all that differs between the sets: dot_X.h in its room.
//
// The sums are those of AVX2, and so is every float operation: all sets give the same bits.
//
// Weights are unpacked on the way, for each tile anew, as with AVX-512. Nothing is prefetched: a block's
// weights follow each other, and no Arm machine was at hand to measure a distance.
#pragma once

#include <arm_neon.h>

#include <algorithm>

#include "generic/with_count.h"
#include "kernels.h"
#include "neon/activations_neon.h"

namespace baichuan2 {
namespace neon {

constexpr std::int64_t kTurnBlocks = 4;  // that take turns with a tile

// Vectors of four rows in a block.
template <int Bits>
constexpr int kRowVectors = Bits == 4 ? 4 : 2;

// Integer sums of T tokens with every row of a block.
template <int Bits, int T>
using Sums = int32x4_t[T][kRowVectors<Bits>];

// Scales, and scales times (zero - bias), of a block's rows in one group.
template <int Bits>
struct GroupScales {
    float32x4_t scale[kRowVectors<Bits>];
    float32x4_t zero[kRowVectors<Bits>];
};

template <int Bits>
BAICHUAN2_INLINE GroupScales<Bits> load_scales(const std::uint16_t* scales, const std::uint8_t* zeros) {
    const uint8x8_t bytes = vld1_u8(zeros);
    const uint8x8_t rows[2] = {Bits == 4 ? vand_u8(bytes, vdup_n_u8(15)) : bytes, vshr_n_u8(bytes, 4)};
    GroupScales<Bits> out;
    for (int v = 0; v < kRowVectors<Bits>; v += 2) {
        const int16x8_t zero =
            vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(rows[v / 2])), vdupq_n_s16(Bits == 4 ? 8 : 128));
        const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(zero)));
        const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(zero));
        out.scale[v] = NeonSimd::half_to_floats(vld1_u16(scales + v * 4));
        out.scale[v + 1] = NeonSimd::half_to_floats(vld1_u16(scales + v * 4 + 4));
        out.zero[v] = vmulq_f32(out.scale[v], low);
        out.zero[v + 1] = vmulq_f32(out.scale[v + 1], high);
    }
    return out;
}

// Add a group's integer sums, scaled, to the float sums.
BAICHUAN2_INLINE float32x4_t add_group(int32x4_t sums, float32x4_t scale, float32x4_t zero, float x_scale,
                                       float x_offset, float32x4_t total) {
    // The activations' scale comes last: no part overflows where the whole does not.
    const float32x4_t codes = vmulq_f32(vcvtq_f32_s32(sums), scale);
    return vfmaq_n_f32(total, vfmaq_n_f32(codes, zero, x_offset), x_scale);
}

// One block and one tile of T tokens.
template <class Dots, int Bits, int T>
void multiply_block(const PackedMatrix& matrix, std::int64_t block, const TileArrays& tile, float* y,
                    std::int64_t stride) {
    constexpr int kVectors = kRowVectors<Bits>;
    const std::uint8_t* codes = matrix.codes(block);
    const std::uint16_t* scales = matrix.scales(block);
    const std::uint8_t* zeros = matrix.zeros(block);
    const std::int8_t* x = tile.codes;
    float32x4_t totals[T][kVectors];
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < kVectors; ++v) totals[t][v] = vdupq_n_f32(0.0f);
    }
    for (std::int64_t group = 0; group < matrix.groups(); ++group) {
        Sums<Bits, T> sums;
        Dots::template dot_group<Bits, T>(codes, x, tile.starts + group * T, sums);
        const GroupScales<Bits> group_scales = load_scales<Bits>(scales, zeros);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                totals[t][v] =
                    add_group(sums[t][v], group_scales.scale[v], group_scales.zero[v],
                              tile.scales[group * T + t], tile.offsets[group * T + t], totals[t][v]);
            }
        }
        codes += kGroupBytes;
        scales += kVectors * 4;
        zeros += 8;
        x += T * kGroupCodeBytes<Bits>;
    }
    for (int t = 0; t < T; ++t) {
        for (int v = 0; v < kVectors; ++v) {
            vst1q_f32(y + t * stride + (block * kVectors + v) * 4, totals[t][v]);
        }
    }
}

// A tile is read once for a few blocks, which stay in the second cache from tile to tile.
template <class Dots, int Bits>
BAICHUAN2_INLINE void matmul_bits(const MatmulTask& task, const Activations& x) {
    for (std::int64_t first = task.first_block; first < task.last_block; first += kTurnBlocks) {
        const std::int64_t last = std::min(first + kTurnBlocks, task.last_block);
        for (std::int64_t index = 0; index < x.tiles(); ++index) {
            const TileArrays tile = open_tile<Dots, Bits>(x.tile(index));
            float* y = task.y + x.tile_start(index) * task.stride;
            with_count<Dots::kTileTokens>(tile.stride, [&](auto tokens) {
                for (std::int64_t block = first; block < last; ++block) {
                    multiply_block<Dots, Bits, tokens>(*task.matrix, block, tile, y, task.stride);
                }
            });
        }
    }
}

template <class Dots>
void matmul(const MatmulTask& task, const Activations& x) {
    if (task.matrix->bits() == 4) {
        matmul_bits<Dots, 4>(task, x);
    } else {
        matmul_bits<Dots, 8>(task, x);
    }
}

// One group of a block and of a full tile, out of the first cache.
template <class Dots, int Bits>
BAICHUAN2_INLINE void multiply_groups(std::int64_t rounds) {
    constexpr int T = Dots::kTileTokens;
    const std::uint8_t codes[kGroupBytes] = {};
    const std::int8_t x[T * kGroupCodeBytes<Bits>] = {};
    const std::int32_t starts[T] = {};
    for (std::int64_t round = 0; round < rounds; ++round) {
        // Each round loads again, and all its sums are wanted.
        __asm__ volatile("" : : "r"(codes), "r"(x), "r"(starts) : "memory");
        Sums<Bits, T> sums;
        Dots::template dot_group<Bits, T>(codes, x, starts, sums);
        for (int t = 0; t < T; ++t) {
            for (int v = 0; v < kRowVectors<Bits>; ++v) __asm__ volatile("" : : "w"(sums[t][v]));
        }
    }
}

template <class Dots>
std::int64_t multiply_rounds(int bits, std::int64_t rounds) {
    if (bits == 4) {
        multiply_groups<Dots, 4>(rounds);
    } else {
        multiply_groups<Dots, 8>(rounds);
    }
    return rounds * Dots::kTileTokens * kGroup * (bits == 4 ? 16 : 8);
}

// The matrix product's part of a row of the table.
template <class Dots>
constexpr void set_matmul(Kernels& kernels) {
    kernels.activations = kActivations<Dots>;
    kernels.matmul_blocks = kTurnBlocks;
    kernels.matmul_scratch_bytes = [](std::int64_t) -> std::int64_t { return 0; };
    kernels.matmul = matmul<Dots>;
    kernels.multiply_rounds = multiply_rounds<Dots>;
}

}  // namespace neon
}  // namespace baichuan2
