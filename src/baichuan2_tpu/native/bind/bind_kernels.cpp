// Bindings of single kernels, so that each can be compared with numpy and with its scalar twin.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "bind/bindings.h"
#include "bind/gptq_arrays.h"
#include "kernels.h"
#include "layout/kv_cache.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace baichuan2 {
namespace {

using FloatCube = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using SlopeArray = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Element, class... Size>
auto new_array(Size... sizes) {
    auto* data = new Element[(static_cast<std::size_t>(sizes) * ...)]();
    const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<Element*>(p); });
    return nb::ndarray<nb::numpy, Element, nb::ndim<sizeof...(Size)>>(
        data, {static_cast<std::size_t>(sizes)...}, owner);
}

Activations quantize_all(const Kernels& kernels, const FloatArray& x, int weight_bits) {
    const auto tokens = static_cast<std::int64_t>(x.shape(0)),
               columns = static_cast<std::int64_t>(x.shape(1));
    Activations out(tokens, columns);
    out.reshape(tokens, columns, weight_bits);
    for (std::int64_t i = 0; i < tokens; ++i) kernels.quantize(x.data() + i * columns, columns, out.slot(i));
    return out;
}

// Codes in the order of the columns, scales and offsets.
auto quantize_activations(const std::string& name, const FloatArray& x, int weight_bits) {
    if (weight_bits != 4 && weight_bits != 8) throw std::invalid_argument("weight_bits must be 4 or 8");
    Activations packed = quantize_all(find_kernels(name), x, weight_bits);
    auto codes = new_array<std::int16_t>(packed.tokens(), packed.groups() * kGroup);
    auto scales = new_array<float>(packed.tokens(), packed.groups());
    auto offsets = new_array<float>(packed.tokens(), packed.groups());
    for (std::int64_t token = 0; token < packed.tokens(); ++token) {
        const ActivationSlot slot = packed.slot(token);
        for (std::int64_t group = 0; group < packed.groups(); ++group) {
            scales.data()[token * packed.groups() + group] = slot.scales[group * slot.stride];
            offsets.data()[token * packed.groups() + group] = slot.offsets[group * slot.stride];
        }
        for (std::int64_t column = 0; column < packed.groups() * kGroup; ++column) {
            const std::int8_t* step =
                slot.steps + column / kStepColumns * slot.stride * kStepColumns * code_bytes(weight_bits);
            const std::int64_t i = column % kStepColumns;
            std::int16_t wide[kStepColumns];
            if (weight_bits == 8) std::memcpy(wide, step, sizeof wide);
            codes.data()[token * packed.groups() * kGroup + column] =
                weight_bits == 4 ? step[i] : wide[i % 2 * 2 + i / 2];
        }
    }
    return std::make_tuple(codes, scales, offsets);
}

auto matmul(const std::string& name, const WordArray& qweight, const WordArray& qzeros,
            const HalfArray& scales, int bits, std::int64_t group_size, const FloatArray& x, bool is_exact) {
    const Kernels& kernels = find_kernels(name);
    const GptqView view = view_gptq(qweight, qzeros, scales, bits, group_size);
    const auto tokens = static_cast<std::int64_t>(x.shape(0)),
               columns = static_cast<std::int64_t>(x.shape(1));
    if (columns != view.columns) throw std::invalid_argument("x has the wrong number of columns");
    ThreadPool pool(1);
    PackedMatrix matrix(view.rows, view.columns, bits);
    matrix.pack(0, view, pool);
    const Buffer scratch(static_cast<std::size_t>(kernels.matmul_scratch_bytes(tokens)));
    auto padded = new_array<float>(tokens, matrix.padded_rows());
    const MatmulTask task = {&matrix,       0, matrix.blocks(), padded.data(), matrix.padded_rows(),
                             scratch.data()};
    if (is_exact) {
        const std::int64_t stride = matrix.groups() * kGroup;
        auto filled = new_array<float>(tokens, stride);
        for (std::int64_t i = 0; i < tokens; ++i) {
            std::copy_n(x.data() + i * columns, columns, filled.data() + i * stride);
        }
        kernels.matmul_exact(task, filled.data(), stride, tokens);
    } else {
        kernels.matmul(task, quantize_all(kernels, x, bits));
    }
    auto y = new_array<float>(tokens, view.rows);
    for (std::int64_t i = 0; i < tokens; ++i) {
        std::copy_n(padded.data() + i * matrix.padded_rows(), view.rows, y.data() + i * view.rows);
    }
    return y;
}

// Causal attention of queries (T, heads, D) over keys and values (S, kv heads, D).
// The first query is at position S - T.
auto attend(const std::string& name, const FloatCube& queries, const FloatCube& keys, const FloatCube& values,
            const SlopeArray& slopes, std::int64_t tile_tokens) {
    const Kernels& kernels = find_kernels(name);
    const auto tokens = static_cast<std::int64_t>(queries.shape(0)),
               heads = static_cast<std::int64_t>(queries.shape(1));
    const auto size = static_cast<std::int64_t>(queries.shape(2)),
               context = static_cast<std::int64_t>(keys.shape(0));
    const auto kv_heads = static_cast<std::int64_t>(keys.shape(1)), shared = heads / kv_heads;
    if (tile_tokens < 1 || tile_tokens * shared > kMaxQueries || size % 8 != 0 ||
        size > KvCache::kMaxHeadSize) {
        throw std::invalid_argument("the tile or the head size is not allowed");
    }
    const KvCache cache(1, kv_heads, size, context);
    for (std::int64_t i = 0; i < context * kv_heads; ++i) {
        cache.store(kernels, 0, i % kv_heads, i / kv_heads, keys.data() + i * size, values.data() + i * size);
    }
    auto out = new_array<float>(tokens, heads, size);
    std::vector<float> scratch(static_cast<std::size_t>(attention_scratch_floats(size)));
    for (std::int64_t first = 0; first < tokens; first += tile_tokens) {
        for (std::int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
            const float* query[kMaxQueries];
            float* to[kMaxQueries];
            std::int64_t position[kMaxQueries];
            float slope[kMaxQueries];
            std::int64_t count = 0;
            for (std::int64_t token = first; token < std::min(first + tile_tokens, tokens); ++token) {
                for (std::int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h, ++count) {
                    query[count] = queries.data() + (token * heads + h) * size;
                    to[count] = out.data() + (token * heads + h) * size;
                    position[count] = context - tokens + token;
                    slope[count] = slopes.shape(0) == 0 ? 0.0f : slopes.data()[h];
                }
            }
            kernels.attend({cache.keys(0, kv_head), cache.values(0, kv_head), size, count, query, to,
                            position, slope, 1.0f / std::sqrt(static_cast<float>(size)), scratch.data()});
        }
    }
    return out;
}

auto swiglu(const std::string& name, const FloatArray& gate, const FloatArray& up) {
    auto out = new_array<float>(gate.shape(0), gate.shape(1));
    find_kernels(name).swiglu(gate.data(), up.data(), static_cast<std::int64_t>(gate.size()), out.data());
    return out;
}

auto round_to_half(const std::string& name, const FloatArray& x) {
    auto halves = new_array<std::uint16_t>(x.shape(0), x.shape(1));
    auto out = new_array<float>(x.shape(0), x.shape(1));
    find_kernels(name).to_half(x.data(), static_cast<std::int64_t>(x.size()), halves.data());
    find_kernels(name).from_half(halves.data(), static_cast<std::int64_t>(x.size()), out.data());
    return out;
}

}  // namespace

void bind_kernels(nb::module_& module) {
    module.def("kernel_names", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->name);
        return names;
    });
    module.def("quantize_activations", &quantize_activations, "kernels"_a, "x"_a, "weight_bits"_a);
    module.def("matmul", &matmul, "kernels"_a, "qweight"_a, "qzeros"_a, "scales"_a, "bits"_a, "group_size"_a,
               "x"_a, "is_exact"_a);
    module.def("attend", &attend, "kernels"_a, "queries"_a, "keys"_a, "values"_a, "slopes"_a,
               "tile_tokens"_a);
    module.def("swiglu", &swiglu, "kernels"_a, "gate"_a, "up"_a);
    module.def("round_to_half", &round_to_half, "kernels"_a, "x"_a);
}

}  // namespace baichuan2
