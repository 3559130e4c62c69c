// The kernels in plain C++: the definition of the others, and the way to run anywhere.
#include "generic/attention.h"
#include "generic/elementwise.h"
#include "generic/matmul_exact.h"
#include "kernels.h"

namespace baichuan2 {
namespace {

std::int32_t pack_pair(int low, int high) {
    return static_cast<std::int32_t>((static_cast<std::uint32_t>(low) & 0xffff) |
                                     (static_cast<std::uint32_t>(high) << 16));
}

// Where column `i` of a step lies among its four codes.
template <int Bits>
constexpr std::int64_t place_of(std::int64_t i) {
    return Bits == 4 ? i : i % 2 * 2 + i / 2;
}

template <int Bits, class Code>
void quantize_group(const float* x, std::int64_t count, const ActivationSlot& slot, std::int64_t group) {
    constexpr float kMost = Bits == 4 ? 127.0f : 32767.0f;
    float largest = 0.0f;
    for (std::int64_t i = 0; i < count; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    const bool is_zero = largest < kSmallestGroup;
    const float inverse = is_zero ? 0.0f : kMost / largest;
    int sums[2] = {0, 0};
    for (std::int64_t step = 0; step < kGroup / kStepColumns; ++step) {
        Code codes[kStepColumns];
        for (std::int64_t i = 0; i < kStepColumns; ++i) {
            const std::int64_t column = step * kStepColumns + i;
            const int code = column < count ? static_cast<int>(std::nearbyintf(x[column] * inverse)) : 0;
            sums[i / 2] += code;
            codes[place_of<Bits>(i)] = static_cast<Code>(code);
        }
        const std::int64_t at = (group * kGroup / kStepColumns + step) * slot.stride;
        std::memcpy(slot.steps + at * static_cast<std::int64_t>(sizeof codes), codes, sizeof codes);
    }
    const int sum = sums[0] + sums[1];
    slot.scales[group * slot.stride] = is_zero ? 0.0f : largest / kMost;
    slot.offsets[group * slot.stride] = static_cast<float>(-sum);
    slot.starts[group * slot.stride] = Bits == 4 ? pack_pair(-8 * sums[0], -8 * sums[1]) : -128 * sum;
}

void quantize(const float* x, std::int64_t columns, const ActivationSlot& slot) {
    for (std::int64_t column = 0; column < columns; column += kGroup) {
        const std::int64_t count = columns - column < kGroup ? columns - column : kGroup;
        if (slot.weight_bits == 4) {
            quantize_group<4, std::int8_t>(x + column, count, slot, column / kGroup);
        } else {
            quantize_group<8, std::int16_t>(x + column, count, slot, column / kGroup);
        }
    }
}

// The sums over one group of (code - bias) * x, for every row of the block.
template <int Bits, class Code>
void dot_group(const std::uint8_t* codes, const Code* x, std::int64_t stride, std::int32_t* sums) {
    constexpr int kRows = Bits == 4 ? 16 : 8;
    constexpr int kBias = Bits == 4 ? 8 : 128;
    for (int row = 0; row < kRows; ++row) sums[row] = 0;
    for (std::int64_t step = 0; step < kGroup / kStepColumns; ++step) {
        for (std::int64_t byte = 0; byte < kStepBytes; ++byte) {
            const int code = codes[step * kStepBytes + byte];
            const int value = x[step * stride * kStepColumns + place_of<Bits>(byte % kStepColumns)];
            const std::int64_t row = byte / kStepColumns;
            if (Bits == 4) {
                sums[row] += ((code & 15) - kBias) * value;
                sums[8 + row] += ((code >> 4) - kBias) * value;
            } else {
                sums[row] += (code - kBias) * value;
            }
        }
    }
}

template <int Bits, class Code>
void matmul_token(const PackedMatrix& matrix, std::int64_t block, const Tile& tile, std::int64_t lane,
                  float* y) {
    constexpr int kRows = Bits == 4 ? 16 : 8;
    constexpr float kBias = Bits == 4 ? 8 : 128;
    const std::int64_t stride = tile.tokens;
    const auto* x = reinterpret_cast<const Code*>(tile.codes) + lane * kStepColumns;
    float totals[kRows] = {};
    for (std::int64_t group = 0; group < matrix.groups(); ++group) {
        std::int32_t sums[kRows];
        float zeros[16];
        dot_group<Bits>(matrix.codes(block) + group * kGroupBytes, x + group * kGroup * stride, stride, sums);
        load_zeros(Bits, matrix.zeros(block) + group * 8, zeros);
        const float x_scale = tile.scales[group * stride + lane];
        const float x_offset = tile.offsets[group * stride + lane];
        for (int row = 0; row < kRows; ++row) {
            const float scale = half_to_float(matrix.scales(block)[group * kRows + row]);
            const float sum = scale * (zeros[row] - kBias) * x_offset + static_cast<float>(sums[row]) * scale;
            totals[row] += sum * x_scale;
        }
    }
    std::memcpy(y + block * kRows, totals, sizeof totals);
}

void matmul(const MatmulTask& task, const Activations& x) {
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
        for (std::int64_t index = 0; index < x.tiles(); ++index) {
            const Tile tile = x.tile(index);
            for (std::int64_t lane = 0; lane < tile.tokens; ++lane) {
                float* y = task.y + (x.tile_start(index) + lane) * task.stride;
                if (task.matrix->bits() == 4) {
                    matmul_token<4, std::int8_t>(*task.matrix, block, tile, lane, y);
                } else {
                    matmul_token<8, std::int16_t>(*task.matrix, block, tile, lane, y);
                }
            }
        }
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
        dot_group<Bits>(codes, x, 1, sums);
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

}  // namespace

const Kernels kScalarKernels = {
    "scalar",
    [](std::int64_t) -> std::int64_t { return 0; },
    quantize,
    matmul,
    matmul_exact<ScalarSimd>,
    Attention<ScalarSimd>::attend,
    rms_norm<ScalarSimd>,
    swiglu<ScalarSimd>,
    add<ScalarSimd>,
    rotate<ScalarSimd>,
    to_half<ScalarSimd>,
    from_half<ScalarSimd>,
    multiply_rounds,
};

}  // namespace baichuan2
