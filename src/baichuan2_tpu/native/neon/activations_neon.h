// Quantised activations as the Arm kernels read them, for every set `Dots` (dot_X.h in its room).
//
// A piece is Dots::kPieceColumns neighbouring columns. In a tile of T tokens, at most Dots::kTileTokens:
//
//   codes    beside 4-bit weights: int8  [piece][T][column]
//            beside 8-bit weights: int16 [piece][T][column], or where Dots::kSplitsCodes
//                                  bytes [piece][high, low][T][column]: code = 256 * high + low,
//                                  high signed, low unsigned; narrow groups too
//   scales   float [group][T]
//   offsets  float [group][T]   -sum(codes): what the zero points multiply
//   starts   int32 [group][T]   where a sum starts, so that it ends at sum((w - bias) * x):
//                               -8 * sum(codes) beside 4-bit weights; beside 8-bit weights
//                               -128 * sum(codes), or -128 * sum(low) where codes are split
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "layout/activations.h"
#include "neon/simd_neon.h"

namespace baichuan2 {
namespace neon {

// How one token's codes of a piece lie: so many planes, so many bytes of each.
template <class Dots, int Bits>
constexpr bool kIsSplit = Bits == 8 && Dots::kSplitsCodes;
template <class Dots, int Bits>
constexpr std::int64_t kPlanes = kIsSplit<Dots, Bits> ? 2 : 1;
template <class Dots, int Bits>
constexpr std::int64_t kPlaneBytes = Dots::kPieceColumns * (Bits / 4) / kPlanes<Dots, Bits>;

// Bytes of one token's codes in a group.
template <int Bits>
constexpr std::int64_t kGroupCodeBytes = kGroup * (Bits / 4);

// A tile's arrays from one of its lanes on; the next group of a lane is `stride` tokens further.
struct TileArrays {
    std::int8_t* codes;
    float* scales;
    float* offsets;
    std::int32_t* starts;
    std::int64_t stride;
};

template <class Dots, int Bits>
BAICHUAN2_INLINE TileArrays open_tile(const ActivationTile& tile, std::int64_t lane = 0) {
    const std::int64_t groups = tile.tokens * tile.groups;
    auto* codes = reinterpret_cast<std::int8_t*>(tile.data);
    auto* scales = reinterpret_cast<float*>(codes + groups * kGroupCodeBytes<Bits>);
    float* offsets = scales + groups;
    auto* starts = reinterpret_cast<std::int32_t*>(offsets + groups);
    return {codes + lane * kPlaneBytes<Dots, Bits>, scales + lane, offsets + lane, starts + lane,
            tile.tokens};
}

BAICHUAN2_INLINE float find_largest(const float* x) {
    NeonSimd::Floats largest = NeonSimd::all(0.0f);
    for (int i = 0; i < kGroup; i += 8) {
        const NeonSimd::Floats value = NeonSimd::load(x + i);
        largest = NeonSimd::max({vabsq_f32(value.low), vabsq_f32(value.high)}, largest);
    }
    return NeonSimd::largest(largest);
}

// Eight codes to where their planes are put together.
template <class Dots, int Bits>
BAICHUAN2_INLINE void store_codes(int16x8_t codes, int column, std::int8_t* planes) {
    if constexpr (Bits == 4) {
        vst1_s8(planes + column, vqmovn_s16(codes));
    } else if constexpr (kIsSplit<Dots, Bits>) {
        vst1_s8(planes + column, vshrn_n_s16(codes, 8));
        vst1_s8(planes + kGroup + column, vmovn_s16(codes));
    } else {
        vst1q_s8(planes + column * 2, vreinterpretq_s8_s16(codes));
    }
}

// `out.scales` has the group's largest value.
template <class Dots, int Bits>
BAICHUAN2_INLINE void quantize_group(const float* x, float wide_limit, const TileArrays& out,
                                     std::int64_t group) {
    constexpr std::int64_t kPieces = kGroup / Dots::kPieceColumns, kBytes = kPlaneBytes<Dots, Bits>;
    const float largest = out.scales[group * out.stride], end = code_end(largest, wide_limit);
    const bool is_zero = largest < kSmallestGroup;
    const float32x4_t inverse = vdupq_n_f32(is_zero ? 0.0f : end / largest);
    std::int8_t planes[kGroupCodeBytes<Bits>];
    int32x4_t sums = vdupq_n_s32(0);
    uint32x4_t low_sums = vdupq_n_u32(0);
    for (int i = 0; i < kGroup; i += 8) {
        const int32x4_t first = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i), inverse));
        const int32x4_t second = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i + 4), inverse));
        const int16x8_t codes = vcombine_s16(vqmovn_s32(first), vqmovn_s32(second));
        store_codes<Dots, Bits>(codes, i, planes);
        sums = vpadalq_s16(sums, codes);
        low_sums = vpadalq_u16(low_sums, vandq_u16(vreinterpretq_u16_s16(codes), vdupq_n_u16(255)));
    }
    for (std::int64_t piece = 0; piece < kPieces; ++piece) {
        for (std::int64_t plane = 0; plane < kPlanes<Dots, Bits>; ++plane) {
            const std::int64_t to = (group * kPieces + piece) * kPlanes<Dots, Bits> + plane;
            std::memcpy(out.codes + to * out.stride * kBytes, planes + plane * kGroup + piece * kBytes,
                        kBytes);
        }
    }
    const int sum = vaddvq_s32(sums);
    const int biased = kIsSplit<Dots, Bits> ? static_cast<int>(vaddvq_u32(low_sums)) : sum;
    out.scales[group * out.stride] = is_zero ? 0.0f : largest / end;
    out.offsets[group * out.stride] = static_cast<float>(-sum);
    out.starts[group * out.stride] = (Bits == 4 ? -8 : -128) * biased;
}

template <class Dots, int Bits>
BAICHUAN2_INLINE void quantize_columns(const float* x, std::int64_t columns, const ActivationTile& tile,
                                       std::int64_t lane) {
    const TileArrays out = open_tile<Dots, Bits>(tile, lane);
    float rest[kGroup] = {};
    for (std::int64_t i = columns / kGroup * kGroup; i < columns; ++i) rest[i % kGroup] = x[i];
    const std::int64_t full_groups = columns / kGroup;
    for (std::int64_t group = 0; group < tile.groups; ++group) {
        out.scales[group * out.stride] = find_largest(group < full_groups ? x + group * kGroup : rest);
    }
    const float wide_limit = find_wide_limit(tile, out.scales, out.stride);
    for (std::int64_t group = 0; group < tile.groups; ++group) {
        quantize_group<Dots, Bits>(group < full_groups ? x + group * kGroup : rest, wide_limit, out, group);
    }
}

template <class Dots>
void quantize(const float* x, std::int64_t columns, const ActivationTile& tile, std::int64_t lane) {
    if (tile.weight_bits == 4) {
        quantize_columns<Dots, 4>(x, columns, tile, lane);
    } else {
        quantize_columns<Dots, 8>(x, columns, tile, lane);
    }
}

template <class Dots, int Bits>
BAICHUAN2_INLINE std::int16_t read_code(const TileArrays& from, std::int64_t column) {
    constexpr std::int64_t kColumns = Dots::kPieceColumns, kBytes = kPlaneBytes<Dots, Bits>;
    const std::int64_t plane_stride = from.stride * kBytes, i = column % kColumns;
    const std::int8_t* piece = from.codes + column / kColumns * kPlanes<Dots, Bits> * plane_stride;
    if constexpr (Bits == 4) {
        return piece[i];
    } else if constexpr (kIsSplit<Dots, Bits>) {
        return static_cast<std::int16_t>(piece[i] * 256 + static_cast<std::uint8_t>(piece[plane_stride + i]));
    } else {
        std::int16_t code;
        std::memcpy(&code, piece + i * 2, 2);
        return code;
    }
}

template <class Dots, int Bits>
BAICHUAN2_INLINE void read_token(const TileArrays& from, std::int64_t groups, const PlainActivations& out) {
    for (std::int64_t group = 0; group < groups; ++group) {
        out.scales[group] = from.scales[group * from.stride];
        out.offsets[group] = from.offsets[group * from.stride];
    }
    for (std::int64_t column = 0; column < groups * kGroup; ++column) {
        out.codes[column] = read_code<Dots, Bits>(from, column);
    }
}

template <class Dots>
void read(const ActivationTile& tile, std::int64_t lane, const PlainActivations& out) {
    if (tile.weight_bits == 4) {
        read_token<Dots, 4>(open_tile<Dots, 4>(tile, lane), tile.groups, out);
    } else {
        read_token<Dots, 8>(open_tile<Dots, 8>(tile, lane), tile.groups, out);
    }
}

template <class Dots>
std::int64_t group_bytes(int weight_bits) {
    return kGroup * (weight_bits / 4) + 4 + 4 + 4;
}

template <class Dots>
constexpr ActivationFormat kActivations = {Dots::kTileTokens, group_bytes<Dots>, quantize<Dots>, read<Dots>};

}  // namespace neon
}  // namespace baichuan2
