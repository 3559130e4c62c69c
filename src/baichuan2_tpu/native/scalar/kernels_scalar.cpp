// The kernels in plain C++: the definition of the others, and the way to run anywhere.
#include "generic/generic_kernels.h"
#include "scalar/activations_scalar.h"
#include "scalar/simd_scalar.h"

namespace baichuan2 {
namespace {

using scalar::TokenArrays;

// The sums over one group of (code - bias) * x, for every row of the block.
// Eight rows side by side, each row's codes of a step in a word: compilers make vectors of that.
template <int Bits, class Code>
void dot_group(const std::uint8_t* codes, const Code* x, std::int32_t* sums) {
    constexpr int kBias = Bits == 4 ? 8 : 128;
    std::int32_t low[8] = {}, high[8] = {};
    for (std::int64_t column = 0; column < kGroup; ++column) {
        std::uint32_t words[8];  // of a step, each with a row's codes
        std::memcpy(words, codes + column / kStepColumns * kStepBytes, sizeof words);
        const int shift = static_cast<int>(column % kStepColumns) * 8;
        const std::int32_t value = x[column];
        for (int row = 0; row < 8; ++row) {
            const int code = static_cast<int>(words[row] >> shift & 255);
            if (Bits == 4) {
                low[row] += ((code & 15) - kBias) * value;
                high[row] += ((code >> 4) - kBias) * value;
            } else {
                low[row] += (code - kBias) * value;
            }
        }
    }
    std::memcpy(sums, low, sizeof low);
    if (Bits == 4) std::memcpy(sums + 8, high, sizeof high);
}

template <int Bits, class Code>
void multiply_token(const PackedMatrix& matrix, std::int64_t block, const TokenArrays<Code>& x, float* y) {
    constexpr int kRows = Bits == 4 ? 16 : 8;
    constexpr float kBias = Bits == 4 ? 8 : 128;
    float totals[kRows] = {};
    for (std::int64_t group = 0; group < matrix.groups(); ++group) {
        std::int32_t sums[kRows];
        float zeros[16];
        dot_group<Bits>(matrix.codes(block) + group * kGroupBytes, x.codes + group * kGroup, sums);
        load_zeros(Bits, matrix.zeros(block) + group * 8, zeros);
        for (int row = 0; row < kRows; ++row) {
            const float scale = half_to_float(matrix.scales(block)[group * kRows + row]);
            const float offset = scale * (zeros[row] - kBias) * x.offsets[group];
            totals[row] += (offset + static_cast<float>(sums[row]) * scale) * x.scales[group];
        }
    }
    std::memcpy(y + block * kRows, totals, sizeof totals);
}

template <int Bits, class Code>
void matmul_bits(const MatmulTask& task, const Activations& x) {
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
        for (std::int64_t token = 0; token < x.tokens(); ++token) {
            const TokenArrays<Code> arrays(x.tile(token));
            multiply_token<Bits>(*task.matrix, block, arrays, task.y + token * task.stride);
        }
    }
}

void matmul(const MatmulTask& task, const Activations& x) {
    if (task.matrix->bits() == 4) {
        matmul_bits<4, std::int8_t>(task, x);
    } else {
        matmul_bits<8, std::int16_t>(task, x);
    }
}

template <int Bits, class Code>
void multiply_groups(std::int64_t rounds) {
    std::uint8_t codes[kGroupBytes];
    Code x[kGroup];
    for (std::int64_t i = 0; i < kGroupBytes; ++i) codes[i] = static_cast<std::uint8_t>(i);
    for (std::int64_t i = 0; i < kGroup; ++i) x[i] = static_cast<Code>(i);
    for (std::int64_t round = 0; round < rounds; ++round) {
        std::int32_t sums[16];
        dot_group<Bits>(codes, x, sums);
        x[round % kGroup] = static_cast<Code>(sums[round % 8]);  // the next round needs this one
    }
}

std::int64_t multiply_rounds(int bits, std::int64_t rounds) {
    if (bits == 4) {
        multiply_groups<4, std::int8_t>(rounds);
    } else {
        multiply_groups<8, std::int16_t>(rounds);
    }
    return rounds * kGroup * (bits == 4 ? 16 : 8);
}

constexpr Kernels make_kernels() {
    Kernels kernels = generic_kernels<ScalarSimd>("scalar");
    kernels.activations = scalar::kActivations;
    kernels.matmul_blocks = 1;
    kernels.matmul_scratch_bytes = [](std::int64_t) -> std::int64_t { return 0; };
    kernels.matmul = matmul;
    kernels.multiply_rounds = multiply_rounds;
    return kernels;
}

constexpr Kernels kKernels = make_kernels();

}  // namespace

const Kernels kScalarKernels = kKernels;

}  // namespace baichuan2
