// Quantised weights times float32 activations: the oracle's matrix product, written once over eight floats.
//
// y = sum over groups of scale * (sum of (code - zero) * x); code - zero is exact in float32.
#pragma once

#include "kernels.h"

namespace baichuan2 {

// Zero points of a block's rows: 16 at 4 bits, 8 at 8 bits.
BAICHUAN2_INLINE void load_zeros(int bits, const std::uint8_t* zeros, float* out) {
    for (int i = 0; i < 8; ++i) {
        out[i] = static_cast<float>(bits == 4 ? zeros[i] & 15 : zeros[i]);
        if (bits == 4) out[8 + i] = static_cast<float>(zeros[i] >> 4);
    }
}

template <class Simd, int Bits, int Tokens>
void matmul_exact_block(const PackedMatrix& matrix, std::int64_t block, const float* x, std::int64_t x_stride,
                        float* y, std::int64_t stride) {
    using Floats = typename Simd::Floats;
    constexpr int kVectors = Bits == 4 ? 2 : 1;
    const std::uint8_t* codes = matrix.codes(block);
    Floats totals[Tokens][kVectors];
    for (int t = 0; t < Tokens; ++t) {
        for (int v = 0; v < kVectors; ++v) totals[t][v] = Simd::all(0.0f);
    }
    for (std::int64_t group = 0; group < matrix.groups(); ++group) {
        float zeros[16];
        load_zeros(Bits, matrix.zeros(block) + group * 8, zeros);
        Floats sums[Tokens][kVectors];
        for (int t = 0; t < Tokens; ++t) {
            for (int v = 0; v < kVectors; ++v) sums[t][v] = Simd::all(0.0f);
        }
        for (std::int64_t column = 0; column < kGroup; ++column) {
            const std::uint8_t* step = codes + (group * kGroup + column) / kStepColumns * kStepBytes;
            for (int v = 0; v < kVectors; ++v) {
                const int shift = static_cast<int>(column % kStepColumns) * 8 + v * 4;
                const Floats code = Simd::load_bits(step, shift, (1u << Bits) - 1);
                const Floats weight = Simd::sub(code, Simd::load(zeros + v * 8));
                for (int t = 0; t < Tokens; ++t) {
                    sums[t][v] =
                        Simd::fma(weight, Simd::all(x[t * x_stride + group * kGroup + column]), sums[t][v]);
                }
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            const Floats scale = Simd::load_half(matrix.scales(block) + group * 8 * kVectors + v * 8);
            for (int t = 0; t < Tokens; ++t) totals[t][v] = Simd::fma(sums[t][v], scale, totals[t][v]);
        }
    }
    for (int t = 0; t < Tokens; ++t) {
        for (int v = 0; v < kVectors; ++v)
            Simd::store(y + t * stride + block * 8 * kVectors + v * 8, totals[t][v]);
    }
}

template <class Simd, int Bits>
void matmul_exact_bits(const MatmulTask& task, const float* x, std::int64_t x_stride, std::int64_t tokens) {
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
        std::int64_t t = 0;
        for (; t + Simd::kExactTokens <= tokens; t += Simd::kExactTokens) {
            matmul_exact_block<Simd, Bits, Simd::kExactTokens>(
                *task.matrix, block, x + t * x_stride, x_stride, task.y + t * task.stride, task.stride);
        }
        for (; t < tokens; ++t) {
            matmul_exact_block<Simd, Bits, 1>(*task.matrix, block, x + t * x_stride, x_stride,
                                              task.y + t * task.stride, task.stride);
        }
    }
}

template <class Simd>
void matmul_exact(const MatmulTask& task, const float* x, std::int64_t x_stride, std::int64_t tokens) {
    if (task.matrix->bits() == 4) {
        matmul_exact_bits<Simd, 4>(task, x, x_stride, tokens);
    } else {
        matmul_exact_bits<Simd, 8>(task, x, x_stride, tokens);
    }
}

}  // namespace baichuan2
