// Eight floats in two NEON registers, for every Arm set. The base of Armv8.0 has all that is used here.
//
// Operations, fused ones too, and the order of sums are those of AVX2.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "float16.h"

namespace baichuan2 {

struct NeonSimd {
    struct Floats {
        float32x4_t low, high;
    };

    // Sums that are carried side by side: 12 take 24 of 32 registers, beside two vectors and a factor.
    static constexpr int kQueries = 6;
    template <int Queries>
    static constexpr int kKeyVectors = Queries > 2 ? 2 : 4;
    template <int Queries>
    static constexpr int kValueVectors = Queries > 2   ? 2
                                         : Queries > 1 ? 4
                                                       : 8;
    static constexpr int kExactTokens = 4;

    static BAICHUAN2_INLINE Floats load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
    static BAICHUAN2_INLINE Floats load_half(const std::uint16_t* p) {
        return {half_to_floats(vld1_u16(p)), half_to_floats(vld1_u16(p + 4))};
    }
    static BAICHUAN2_INLINE Floats load_bits(const std::uint8_t* p, int shift, std::uint32_t mask) {
        return {word_bits(p, shift, mask), word_bits(p + 16, shift, mask)};
    }
    static BAICHUAN2_INLINE Floats all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
    static BAICHUAN2_INLINE Floats add(Floats a, Floats b) {
        return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
    }
    static BAICHUAN2_INLINE Floats sub(Floats a, Floats b) {
        return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
    }
    static BAICHUAN2_INLINE Floats mul(Floats a, Floats b) {
        return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
    }
    static BAICHUAN2_INLINE Floats div(Floats a, Floats b) {
        return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
    }
    static BAICHUAN2_INLINE Floats fma(Floats a, Floats b, Floats c) {
        return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
    }
    // Selected, not vmaxq: where a is not a number, b, and of two zeros the second, as the x86 instruction.
    static BAICHUAN2_INLINE Floats max(Floats a, Floats b) {
        return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low),
                vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
    }
    static BAICHUAN2_INLINE Floats min(Floats a, Floats b) {
        return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low),
                vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
    }
    static BAICHUAN2_INLINE Floats where_greater(Floats a, Floats b, Floats x) {
        return {keep(vcgtq_f32(a.low, b.low), x.low), keep(vcgtq_f32(a.high, b.high), x.high)};
    }
    static BAICHUAN2_INLINE Floats round(Floats a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
    static BAICHUAN2_INLINE Floats exp2_whole(Floats a) { return {power(a.low), power(a.high)}; }
    static BAICHUAN2_INLINE void store(float* p, Floats a) {
        vst1q_f32(p, a.low);
        vst1q_f32(p + 4, a.high);
    }
    static BAICHUAN2_INLINE void store_half(std::uint16_t* p, Floats a) {
        vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.low)));
        vst1_u16(p + 4, vreinterpret_u16_f16(vcvt_f16_f32(a.high)));
    }
    static BAICHUAN2_INLINE float sum(Floats a) {
        const float32x4_t quarter = vaddq_f32(a.low, a.high);
        const float32x2_t half = vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter));
        return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
    }
    static BAICHUAN2_INLINE float largest(Floats a) { return vmaxvq_f32(vmaxq_f32(a.low, a.high)); }

    static BAICHUAN2_INLINE float32x4_t half_to_floats(uint16x4_t halves) {
        return vcvt_f32_f16(vreinterpret_f16_u16(halves));
    }

private:
    static BAICHUAN2_INLINE float32x4_t word_bits(const std::uint8_t* p, int shift, std::uint32_t mask) {
        const uint32x4_t words = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vdupq_n_s32(-shift));
        return vcvtq_f32_u32(vandq_u32(words, vdupq_n_u32(mask)));
    }
    static BAICHUAN2_INLINE float32x4_t keep(uint32x4_t is_kept, float32x4_t x) {
        return vreinterpretq_f32_u32(vandq_u32(is_kept, vreinterpretq_u32_f32(x)));
    }
    static BAICHUAN2_INLINE float32x4_t power(float32x4_t whole) {
        const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127));
        return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
    }
};

}  // namespace baichuan2
