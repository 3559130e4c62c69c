// Bindings of the model and its sequences. Python has checked tokens and room; shapes are checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <optional>

#include "bind/bindings.h"
#include "bind/numpy_array.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace baichuan2 {
namespace {

using TokenVector = NumpyArray<std::int32_t, 1>;
using NormVector = NumpyArray<float, 1>;
using LogitMatrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

template <class Value>
Value look_up(const std::map<std::string, Value>& names, const std::string& name) {
    const auto entry = names.find(name);
    if (entry == names.end()) throw std::invalid_argument("no part is named '" + name + "'");
    return entry->second;
}

Linear find_linear(const std::string& name) {
    static const std::map<std::string, Linear> names = {
        {"q_proj", Linear::kQuery},   {"k_proj", Linear::kKey},     {"v_proj", Linear::kValue},
        {"o_proj", Linear::kOutput},  {"gate_proj", Linear::kGate}, {"up_proj", Linear::kUp},
        {"down_proj", Linear::kDown}, {"lm_head", Linear::kHead}};
    return look_up(names, name);
}

Norm find_norm(const std::string& name) {
    static const std::map<std::string, Norm> names = {{"input_layernorm", Norm::kAttention},
                                                      {"post_attention_layernorm", Norm::kMlp},
                                                      {"norm", Norm::kFinal}};
    return look_up(names, name);
}

void check_layer(const Model& model, std::int64_t layer) {
    if (layer < 0 || layer >= model.shape().layers) throw std::invalid_argument("no such layer");
}

// Rows and columns of a linear layer of this model.
std::pair<std::int64_t, std::int64_t> linear_shape(const ModelShape& shape, Linear which) {
    switch (which) {
        case Linear::kQuery: return {shape.query_rows(), shape.hidden};
        case Linear::kKey:
        case Linear::kValue: return {shape.kv_rows(), shape.hidden};
        case Linear::kOutput: return {shape.hidden, shape.query_rows()};
        case Linear::kGate:
        case Linear::kUp: return {shape.intermediate, shape.hidden};
        case Linear::kDown: return {shape.hidden, shape.intermediate};
        default: return {shape.vocabulary, shape.hidden};
    }
}

void pack(Model& model, std::int64_t layer, const std::string& name, const WordMatrix& qweight,
          const WordMatrix& qzeros, const HalfMatrix& scales, std::int64_t group_size) {
    if (model.is_packed()) throw std::invalid_argument("this model's weights were packed before");
    const Linear which = find_linear(name);
    check_layer(model, layer);
    const int bits = which == Linear::kHead ? model.shape().head_bits : model.shape().bits;
    const GptqView view = view_gptq(qweight, qzeros, scales, bits, group_size);
    if (std::make_pair(view.rows, view.columns) != linear_shape(model.shape(), which)) {
        throw std::invalid_argument(name + " has the wrong shape");
    }
    const nb::gil_scoped_release release;
    model.pack(which, layer, view);
}

// Bytes of a file of packed weights, or none.
using PackedBytes = NumpyArray<std::uint8_t, 1>;

void open_model(Model* model, const ModelShape& shape, int threads, const std::string& kernels, bool is_exact,
                const std::optional<PackedBytes>& packed) {
    const char* data = packed ? reinterpret_cast<const char*>(packed->data()) : nullptr;
    new (model) Model(shape, threads, kernels, is_exact, data);
    if (!packed || size_of(*packed, 0) == model->packed_bytes()) return;
    model->~Model();
    throw std::invalid_argument("the packed weights have another size");
}

// The memory of every matrix, each to be padded with zeros to a multiple of PART_ALIGNMENT in a file.
nb::list packed_parts(nb::handle self) {
    nb::list parts;
    for (const PackedMatrix* part : nb::cast<const Model&>(self).packed_parts()) {
        parts.append(nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>>(
            part->data(), {static_cast<std::size_t>(part->bytes())}, self));
    }
    return parts;
}

// Name, seconds, bytes read and multiplications of every kind of work.
using WorkTuple = std::tuple<std::string, double, std::int64_t, std::int64_t>;

std::vector<WorkTuple> read_profile(const Model& model) {
    std::vector<WorkTuple> works;
    if (model.profile() == nullptr) return works;
    std::size_t index = 0;
    for (const WorkTotal& total : *model.profile()) {
        works.emplace_back(kWorkNames[index++], total.seconds, total.bytes, total.macs);
    }
    return works;
}

void set_norm(Model& model, std::int64_t layer, const std::string& name, const NormVector& weight) {
    check_layer(model, layer);
    if (size_of(weight, 0) != model.shape().hidden) {
        throw std::invalid_argument(name + " has the wrong shape");
    }
    model.set_norm(find_norm(name), layer, weight.data());
}

void set_embedding(Model& model, const HalfMatrix& embedding) {
    const ModelShape& shape = model.shape();
    if (size_of(embedding, 0) != shape.vocabulary || size_of(embedding, 1) != shape.hidden) {
        throw std::invalid_argument("the embedding has the wrong shape");
    }
    model.set_embedding(embedding.data());
}

LogitMatrix forward(Model& model, const nb::list& sequences, const std::vector<TokenVector>& tokens,
                    const std::vector<std::int64_t>& logit_rows) {
    std::vector<Request> requests;
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        requests.push_back(
            {nb::cast<Sequence*>(sequences[i]), tokens[i].data(), size_of(tokens[i], 0), logit_rows.at(i)});
        rows += logit_rows[i];
    }
    const std::int64_t stride = model.logits_stride();
    const NewMemory<float> logits(rows * stride);
    {
        const nb::gil_scoped_release release;
        model.forward(requests, logits.data);
    }
    return LogitMatrix(logits.data,
                       {static_cast<std::size_t>(rows), static_cast<std::size_t>(model.shape().vocabulary)},
                       logits.owner, {stride, 1});
}

}  // namespace

void bind_model(nb::module_& module) {
    nb::class_<ModelShape>(module, "ModelShape")
        .def(
            "__init__",
            [](ModelShape* shape, std::int64_t layers, std::int64_t hidden, std::int64_t intermediate,
               std::int64_t heads, std::int64_t kv_heads, std::int64_t head_size, std::int64_t vocabulary,
               std::int64_t context, float norm_eps, double rope_theta,
               const std::vector<float>& alibi_slopes, int bits, int head_bits) {
                new (shape)
                    ModelShape{layers,  hidden,   intermediate, heads,        kv_heads, head_size, vocabulary,
                               context, norm_eps, rope_theta,   alibi_slopes, bits,     head_bits};
            },
            nb::kw_only(), "layers"_a, "hidden"_a, "intermediate"_a, "heads"_a, "kv_heads"_a, "head_size"_a,
            "vocabulary"_a, "context"_a, "norm_eps"_a, "rope_theta"_a, "alibi_slopes"_a, "bits"_a,
            "head_bits"_a);
    nb::class_<Sequence>(module, "Sequence")
        .def(nb::init<const ModelShape&>(), "shape"_a)
        .def_prop_ro("length", [](const Sequence& sequence) { return sequence.length; })
        .def(
            "truncate",
            [](Sequence& sequence, std::int64_t length) {
                if (length < 0 || length > sequence.length) throw std::invalid_argument("no such length");
                sequence.length = length;
            },
            "length"_a)
        .def(
            "copy_prefix",
            [](Sequence& sequence, const Sequence& source, std::int64_t length) {
                if (length < 0 || length > source.length) throw std::invalid_argument("no such length");
                if (&sequence == &source || !sequence.cache.has_shape_of(source.cache)) {
                    throw std::invalid_argument("another sequence of the same shape is needed");
                }
                const nb::gil_scoped_release release;
                sequence.cache.copy_prefix(source.cache, length);
                sequence.length = length;
            },
            "source"_a, "length"_a);
    module.attr("PACKED_LAYOUT") = kPackedLayout;
    module.attr("PART_ALIGNMENT") = Model::kPartAlignment;
    nb::class_<Model>(module, "Model")
        .def("__init__", &open_model, "shape"_a, "threads"_a, "kernels"_a, "is_exact"_a,
             "packed"_a.none() = nb::none(), nb::keep_alive<1, 6>())
        .def_prop_ro("kernels", &Model::kernels_name)
        .def_prop_ro("weight_bytes", &Model::weight_bytes)
        .def_prop_ro("packed_bytes", &Model::packed_bytes)
        .def_prop_ro("is_packed", &Model::is_packed)
        .def("packed_parts", &packed_parts)
        .def("pack", &pack, "layer"_a, "name"_a, "qweight"_a, "qzeros"_a, "scales"_a, "group_size"_a)
        .def("set_norm", &set_norm, "layer"_a, "name"_a, "weight"_a)
        .def("set_profile", &Model::set_profile, "is_on"_a)
        .def("profile", &read_profile)
        .def("set_embedding", &set_embedding, "embedding"_a, nb::keep_alive<1, 2>())
        .def("forward", &forward, "sequences"_a, "tokens"_a, "logit_rows"_a);
}

}  // namespace baichuan2
