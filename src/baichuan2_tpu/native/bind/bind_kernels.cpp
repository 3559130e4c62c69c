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
#include "bind/numpy_array.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace baichuan2 {
namespace {

using FloatCube = NumpyArray<float, 3>;
using FloatVector = NumpyArray<float, 1>;

Activations quantize_rows(const Kernels& kernels, const FloatMatrix& x, int weight_bits, bool is_all_wide) {
    const std::int64_t tokens = size_of(x, 0), columns = size_of(x, 1);
    Activations activations(kernels.activations, tokens, columns);
    activations.reshape(tokens, columns, weight_bits, is_all_wide);
    for (std::int64_t i = 0; i < tokens; ++i) activations.store(i, x.data() + i * columns, columns);
    return activations;
}

// Codes in the order of the columns, scales and offsets.
auto quantize_activations(const std::string& name, const FloatMatrix& x, int weight_bits, bool is_all_wide) {
    if (weight_bits != 4 && weight_bits != 8) throw std::invalid_argument("weight_bits must be 4 or 8");
    const Activations activations = quantize_rows(find_kernels(name), x, weight_bits, is_all_wide);
    const std::int64_t tokens = activations.tokens(), groups = activations.groups();
    const auto codes = new_array<std::int16_t>(tokens, groups * kGroup);
    const auto scales = new_array<float>(tokens, groups);
    const auto offsets = new_array<float>(tokens, groups);
    for (std::int64_t i = 0; i < tokens; ++i) {
        activations.read(
            i, {codes.data() + i * groups * kGroup, scales.data() + i * groups, offsets.data() + i * groups});
    }
    return std::make_tuple(codes, scales, offsets);
}

// Copy rows whose lengths may differ; what is longer in `to` keeps its elements.
void copy_rows(const float* from, std::int64_t from_stride, float* to, std::int64_t to_stride,
               std::int64_t rows) {
    const std::int64_t count = std::min(from_stride, to_stride);
    for (std::int64_t i = 0; i < rows; ++i) std::copy_n(from + i * from_stride, count, to + i * to_stride);
}

auto matmul(const std::string& name, const WordMatrix& qweight, const WordMatrix& qzeros,
            const HalfMatrix& scales, int bits, std::int64_t group_size, const FloatMatrix& x, bool is_exact,
            bool is_all_wide) {
    const Kernels& kernels = find_kernels(name);
    const GptqView view = view_gptq(qweight, qzeros, scales, bits, group_size);
    const std::int64_t tokens = size_of(x, 0), columns = size_of(x, 1);
    if (columns != view.columns) throw std::invalid_argument("x has the wrong number of columns");
    ThreadPool pool(1);
    PackedMatrix matrix(view.rows, view.columns, bits);
    matrix.pack(0, view, pool);
    const Buffer scratch(static_cast<std::size_t>(kernels.matmul_scratch_bytes(tokens)));
    std::vector<float> padded_y(static_cast<std::size_t>(tokens * matrix.padded_rows()));
    const MatmulTask task = {&matrix,       0, matrix.blocks(), padded_y.data(), matrix.padded_rows(),
                             scratch.data()};
    if (is_exact) {
        const std::int64_t stride = matrix.groups() * kGroup;
        std::vector<float> padded_x(static_cast<std::size_t>(tokens * stride));
        copy_rows(x.data(), columns, padded_x.data(), stride, tokens);
        kernels.matmul_exact(task, padded_x.data(), stride, tokens);
    } else {
        kernels.matmul(task, quantize_rows(kernels, x, bits, is_all_wide));
    }
    const auto y = new_array<float>(tokens, view.rows);
    copy_rows(padded_y.data(), matrix.padded_rows(), y.data(), view.rows, tokens);
    return y;
}

// Causal attention of queries (T, heads, D) over keys and values (S, kv heads, D).
// The first query is at position S - T.
auto attend(const std::string& name, const FloatCube& queries, const FloatCube& keys, const FloatCube& values,
            const FloatVector& slopes, std::int64_t tile_tokens) {
    const Kernels& kernels = find_kernels(name);
    const std::int64_t tokens = size_of(queries, 0), heads = size_of(queries, 1), size = size_of(queries, 2);
    const std::int64_t context = size_of(keys, 0), kv_heads = size_of(keys, 1);
    const std::int64_t heads_per_kv_head = heads / kv_heads;
    if (tile_tokens < 1 || tile_tokens * heads_per_kv_head > kMaxQueries || size % 8 != 0 ||
        size > KvCache::kMaxHeadSize) {
        throw std::invalid_argument("the tile or the head size is not allowed");
    }
    const KvCache cache(1, kv_heads, size, context);
    for (std::int64_t i = 0; i < context * kv_heads; ++i) {
        cache.store(kernels.to_half, 0, i % kv_heads, i / kv_heads, keys.data() + i * size,
                    values.data() + i * size);
    }
    const auto out = new_array<float>(tokens, heads, size);
    std::vector<float> scratch(static_cast<std::size_t>(attention_scratch_floats(size)));
    for (std::int64_t first = 0; first < tokens; first += tile_tokens) {
        for (std::int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
            const float* query[kMaxQueries];
            float* to[kMaxQueries];
            std::int64_t position[kMaxQueries];
            float slope[kMaxQueries];
            std::int64_t count = 0;
            const std::int64_t first_head = kv_head * heads_per_kv_head;
            for (std::int64_t token = first; token < std::min(first + tile_tokens, tokens); ++token) {
                for (std::int64_t h = first_head; h < first_head + heads_per_kv_head; ++h, ++count) {
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

auto swiglu(const std::string& name, const FloatMatrix& gate, const FloatMatrix& up) {
    const auto out = new_array<float>(gate.shape(0), gate.shape(1));
    find_kernels(name).swiglu(gate.data(), up.data(), static_cast<std::int64_t>(gate.size()), out.data());
    return out;
}

auto round_to_half(const std::string& name, const FloatMatrix& x) {
    const auto halves = new_array<std::uint16_t>(x.shape(0), x.shape(1));
    const auto out = new_array<float>(x.shape(0), x.shape(1));
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
    module.def("quantize_activations", &quantize_activations, "kernels"_a, "x"_a, "weight_bits"_a,
               "is_all_wide"_a = false);
    module.def("matmul", &matmul, "kernels"_a, "qweight"_a, "qzeros"_a, "scales"_a, "bits"_a, "group_size"_a,
               "x"_a, "is_exact"_a, "is_all_wide"_a = false);
    module.def("attend", &attend, "kernels"_a, "queries"_a, "keys"_a, "values"_a, "slopes"_a,
               "tile_tokens"_a);
    module.def("swiglu", &swiglu, "kernels"_a, "gate"_a, "up"_a);
    module.def("round_to_half", &round_to_half, "kernels"_a, "x"_a);
}

}  // namespace baichuan2
