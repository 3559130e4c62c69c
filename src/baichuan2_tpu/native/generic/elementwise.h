// Norm, activation function, rotation and conversions, written once over eight floats.
//
// Counts need not be multiples of eight: the last few elements take the same path through a small buffer.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "float16.h"

namespace baichuan2 {

// e to the x: relative error below 2e-7 within [-87, 88]; exactly 1 at 0, exactly 0 below -87.
template <class Simd>
BAICHUAN2_INLINE typename Simd::Floats exponential(typename Simd::Floats x) {
    constexpr float kLowest = -87.0f;
    const auto clamped = Simd::min(Simd::max(x, Simd::all(kLowest)), Simd::all(88.0f));
    const auto scaled = Simd::mul(clamped, Simd::all(1.44269504f));
    const auto whole = Simd::round(scaled);
    // two parts of ln 2: the product with the first is exact
    auto rest = Simd::fma(whole, Simd::all(-0.693359375f), clamped);
    rest = Simd::fma(whole, Simd::all(2.12194440e-4f), rest);
    auto sum = Simd::all(1.0f / 5040);
    for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
        sum = Simd::fma(sum, rest, Simd::all(c));
    }
    return Simd::where_greater(x, Simd::all(kLowest), Simd::mul(sum, Simd::exp2_whole(whole)));
}

// Call body(i) for full vectors and tail(i, left) for what is left of `count`.
template <class Body, class Tail>
BAICHUAN2_INLINE void for_eights(std::int64_t count, const Body& body, const Tail& tail) {
    std::int64_t i = 0;
    for (; i + 8 <= count; i += 8) body(i);
    if (i < count) tail(i, count - i);
}

template <class Simd>
BAICHUAN2_INLINE typename Simd::Floats load_some(const float* p, std::int64_t count) {
    float lanes[8] = {};
    for (std::int64_t i = 0; i < count; ++i) lanes[i] = p[i];
    return Simd::load(lanes);
}

template <class Simd>
BAICHUAN2_INLINE void store_some(float* p, typename Simd::Floats x, std::int64_t count) {
    float lanes[8];
    Simd::store(lanes, x);
    for (std::int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

template <class Simd>
void rms_norm(const float* x, const float* weight, float eps, std::int64_t count, float* out) {
    auto squares = Simd::all(0.0f);
    for_eights(
        count,
        [&](std::int64_t i) {
            const auto v = Simd::load(x + i);
            squares = Simd::fma(v, v, squares);
        },
        [&](std::int64_t i, std::int64_t left) {
            const auto v = load_some<Simd>(x + i, left);
            squares = Simd::fma(v, v, squares);
        });
    const auto scale = Simd::all(1.0f / std::sqrt(Simd::sum(squares) / static_cast<float>(count) + eps));
    for_eights(
        count,
        [&](std::int64_t i) {
            Simd::store(out + i, Simd::mul(Simd::mul(Simd::load(x + i), scale), Simd::load(weight + i)));
        },
        [&](std::int64_t i, std::int64_t left) {
            const auto v = Simd::mul(load_some<Simd>(x + i, left), scale);
            store_some<Simd>(out + i, Simd::mul(v, load_some<Simd>(weight + i, left)), left);
        });
}

// silu(gate) * up
template <class Simd>
void swiglu(const float* gate, const float* up, std::int64_t count, float* out) {
    const auto one = Simd::all(1.0f);
    const auto act = [&](typename Simd::Floats g, typename Simd::Floats u) {
        const auto decay = exponential<Simd>(Simd::sub(Simd::all(0.0f), g));
        return Simd::mul(Simd::div(g, Simd::add(one, decay)), u);
    };
    for_eights(
        count, [&](std::int64_t i) { Simd::store(out + i, act(Simd::load(gate + i), Simd::load(up + i))); },
        [&](std::int64_t i, std::int64_t left) {
            const auto v = act(load_some<Simd>(gate + i, left), load_some<Simd>(up + i, left));
            store_some<Simd>(out + i, v, left);
        });
}

template <class Simd>
void add(float* x, const float* y, std::int64_t count) {
    for_eights(
        count, [&](std::int64_t i) { Simd::store(x + i, Simd::add(Simd::load(x + i), Simd::load(y + i))); },
        [&](std::int64_t i, std::int64_t left) {
            for (std::int64_t j = i; j < i + left; ++j) x[j] += y[j];
        });
}

template <class Simd>
void rotate(float* x, const float* cosine, const float* sine, std::int64_t half) {
    const auto turn = [](typename Simd::Floats a, typename Simd::Floats b, typename Simd::Floats c,
                         typename Simd::Floats s) { return Simd::sub(Simd::mul(a, c), Simd::mul(b, s)); };
    const auto both = [&](std::int64_t i, std::int64_t count) {
        const auto low = load_some<Simd>(x + i, count), high = load_some<Simd>(x + half + i, count);
        const auto c = load_some<Simd>(cosine + i, count), s = load_some<Simd>(sine + i, count);
        store_some<Simd>(x + i, turn(low, high, c, s), count);
        store_some<Simd>(x + half + i, Simd::add(Simd::mul(high, c), Simd::mul(low, s)), count);
    };
    for_eights(half, [&](std::int64_t i) { both(i, 8); }, both);
}

// Values outside float16's finite range become its ends:
// one overflow must not reach the tokens that attend to it.
template <class Simd>
void to_half(const float* x, std::int64_t count, std::uint16_t* out) {
    const auto most = Simd::all(65504.0f), least = Simd::all(-65504.0f);
    for_eights(
        count,
        [&](std::int64_t i) {
            Simd::store_half(out + i, Simd::min(Simd::max(Simd::load(x + i), least), most));
        },
        [&](std::int64_t i, std::int64_t left) {
            std::uint16_t lanes[8];
            Simd::store_half(lanes, Simd::min(Simd::max(load_some<Simd>(x + i, left), least), most));
            for (std::int64_t j = 0; j < left; ++j) out[i + j] = lanes[j];
        });
}

template <class Simd>
void from_half(const std::uint16_t* x, std::int64_t count, float* out) {
    for_eights(
        count, [&](std::int64_t i) { Simd::store(out + i, Simd::load_half(x + i)); },
        [&](std::int64_t i, std::int64_t left) {
            for (std::int64_t j = i; j < i + left; ++j) out[j] = half_to_float(x[j]);
        });
}

}  // namespace baichuan2
