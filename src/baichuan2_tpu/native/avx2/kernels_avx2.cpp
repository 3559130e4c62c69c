// The kernels for AVX2 with FMA and F16C.
// Compiled with those options: nothing here may run before they are found.
#include <immintrin.h>

#include "avx2/matmul_avx2.h"
#include "avx2/simd_avx2.h"
#include "generic/attention.h"
#include "generic/elementwise.h"
#include "generic/matmul_exact.h"
#include "kernels.h"

namespace baichuan2 {
namespace {

struct GroupRange {
    __m256 inverse;
    float scale;
};

// The range of a group's values, whose codes go up to `most`.
GroupRange find_range(const float* x, float most) {
    __m256 largest = _mm256_setzero_ps();
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int i = 0; i < kGroup; i += 8) {
        largest = _mm256_max_ps(_mm256_and_ps(magnitude, _mm256_loadu_ps(x + i)), largest);
    }
    const float end = Avx2Simd::largest(largest);
    if (end < kSmallestGroup) return {_mm256_setzero_ps(), 0.0f};
    return {_mm256_set1_ps(most / end), end / most};
}

void quantize_group_8(const float* x, const ActivationSlot& slot, std::int64_t group) {
    const GroupRange range = find_range(x, 127.0f);
    __m256i pairs = _mm256_setzero_si256();
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work within 128-bit halves
    for (int i = 0; i < kGroup / 32; ++i) {
        __m256i codes[4];
        for (int j = 0; j < 4; ++j) {
            codes[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 32 + j * 8), range.inverse));
        }
        const __m256i packed =
            _mm256_permutevar8x32_epi32(_mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]),
                                                           _mm256_packs_epi32(codes[2], codes[3])),
                                        order);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi8(1), packed));
        alignas(32) std::int32_t steps[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(steps), packed);
        auto* out = reinterpret_cast<std::int32_t*>(slot.steps) + (group * 16 + i * 8) * slot.stride;
        for (int j = 0; j < 8; ++j) out[j * slot.stride] = steps[j];
    }
    // Even 16-bit lanes hold columns 0, 1 of each step, odd lanes columns 2, 3.
    __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 8));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 4));
    const int low = static_cast<std::int16_t>(_mm_extract_epi16(sum, 0));
    const int high = static_cast<std::int16_t>(_mm_extract_epi16(sum, 1));
    slot.scales[group * slot.stride] = range.scale;
    slot.offsets[group * slot.stride] = static_cast<float>(-(low + high));
    slot.starts[group * slot.stride] = static_cast<std::int32_t>(
        (static_cast<std::uint32_t>(-8 * low) & 0xffff) | (static_cast<std::uint32_t>(-8 * high) << 16));
}

void quantize_group_16(const float* x, const ActivationSlot& slot, std::int64_t group) {
    const GroupRange range = find_range(x, 32767.0f);
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < kGroup / 8; ++i) {
        const __m256i codes = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 8), range.inverse));
        sums = _mm256_add_epi32(sums, codes);
        // Each half is a step: columns 0, 1, 2, 3 become 0, 2, 1, 3.
        const __m256i steps =
            _mm256_shufflelo_epi16(_mm256_packs_epi32(codes, codes), _MM_SHUFFLE(3, 1, 2, 0));
        auto* out = reinterpret_cast<std::int64_t*>(slot.steps) + (group * 16 + i * 2) * slot.stride;
        out[0] = _mm256_extract_epi64(steps, 0);
        out[slot.stride] = _mm256_extract_epi64(steps, 2);
    }
    alignas(32) std::int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
    int sum = 0;
    for (const int lane : lanes) sum += lane;
    slot.scales[group * slot.stride] = range.scale;
    slot.offsets[group * slot.stride] = static_cast<float>(-sum);
    slot.starts[group * slot.stride] = -128 * sum;
}

void quantize(const float* x, std::int64_t columns, const ActivationSlot& slot) {
    const auto quantize_group = slot.weight_bits == 4 ? quantize_group_8 : quantize_group_16;
    std::int64_t column = 0;
    for (; column + kGroup <= columns; column += kGroup) quantize_group(x + column, slot, column / kGroup);
    if (column < columns) {
        float rest[kGroup] = {};
        for (std::int64_t i = 0; column + i < columns; ++i) rest[i] = x[column + i];
        quantize_group(rest, slot, column / kGroup);
    }
}

void matmul(const MatmulTask& task, const Activations& x) {
    if (task.matrix->bits() == 4) {
        avx2::matmul_bits<4>(task, x);
    } else {
        avx2::matmul_bits<8>(task, x);
    }
}

template <int Bits>
void multiply_registers(std::int64_t rounds) {
    constexpr int kTokens = 6;
    const __m256i weights = _mm256_set1_epi8(7);
    const std::int64_t x = 0x0001000200030004;
    __m256i sums[kTokens][2] = {};
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
            avx2::add_products<Bits>(weights, weights, reinterpret_cast<const std::int8_t*>(&x), sums[t]);
        }
    }
}

std::int64_t multiply_rounds(int bits, std::int64_t rounds) {
    if (bits == 4) {
        multiply_registers<4>(rounds);
    } else {
        multiply_registers<8>(rounds);
    }
    return rounds * 6 * 2 * (bits == 4 ? 32 : 16);
}

}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",
    avx2::scratch_bytes,
    quantize,
    matmul,
    matmul_exact<Avx2Simd>,
    Attention<Avx2Simd>::attend,
    rms_norm<Avx2Simd>,
    swiglu<Avx2Simd>,
    add<Avx2Simd>,
    rotate<Avx2Simd>,
    to_half<Avx2Simd>,
    from_half<Avx2Simd>,
    multiply_rounds,
};

}  // namespace baichuan2
