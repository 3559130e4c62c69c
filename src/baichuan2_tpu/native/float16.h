// float16 to float and back, in plain C++.
#pragma once

#include <cstdint>
#include <cstring>

// Small functions of files that are compiled for one instruction set:
// a copy left to the linker could be the wrong one.
#define BAICHUAN2_INLINE inline __attribute__((always_inline))

namespace baichuan2 {

BAICHUAN2_INLINE float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    std::uint32_t bits = static_cast<std::uint32_t>(half & 0x7fff) << 13;
    float value;
    if (bits >= (0x7c00u << 13)) {
        bits += (255u - 31u) << 23;  // infinity, not a number
        std::memcpy(&value, &bits, 4);
    } else {
        std::memcpy(&value, &bits, 4);
        value *= 0x1p112f;  // the difference of the exponents' biases; right for subnormals too
    }
    std::memcpy(&bits, &value, 4);
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Rounds to nearest even; the argument must lie within float16's finite range.
BAICHUAN2_INLINE std::uint16_t float_to_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const std::uint32_t sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits < (113u << 23)) {  // subnormal: let an addition round at the right bit
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        std::memcpy(&bits, &magnitude, 4);
        return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
    }
    bits += ((bits >> 13) & 1) + 0xfff - (112u << 23);
    return static_cast<std::uint16_t>(sign | (bits >> 13));
}

}  // namespace baichuan2
