#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace baichuan2 {
namespace {

// Prompts run in batches of this many tokens:
// enough to compute rather than read, small enough for the caches.
constexpr std::int64_t kBatchTokens = 256;

std::int64_t round_up(std::int64_t count, std::int64_t unit) { return (count + unit - 1) / unit * unit; }

// Rows of a part of a matrix: full blocks at either number of bits.
std::int64_t pad_rows(std::int64_t rows) { return round_up(rows, 16); }

}  // namespace

QkvLayout::QkvLayout(const ModelShape& shape)
    : keys(pad_rows(shape.query_rows())),
      values(keys + pad_rows(shape.kv_rows())),
      rows(values + pad_rows(shape.kv_rows())) {}

GateUpLayout::GateUpLayout(const ModelShape& shape) : up(pad_rows(shape.intermediate)), rows(2 * up) {}

struct Model::Layer {
    PackedMatrix qkv;
    PackedMatrix output;
    PackedMatrix gate_up;
    PackedMatrix down;
    std::vector<float> attention_norm;
    std::vector<float> mlp_norm;
};

// One linear layer of the checkpoint: rows of a matrix that may hold several.
struct Model::Part {
    PackedMatrix* matrix;
    std::int64_t first_row;
};

struct Model::Row {
    Sequence* sequence;
    std::int64_t position;
    std::int32_t token;
    bool wants_logits;
};

// Activations of one batch. Inputs of a matmul lie in rows of full groups whose padding stays zero.
struct Model::Workspace {
    Workspace(const ModelShape& shape, const Kernels& kernels, int threads)
        : hidden_stride(round_up(shape.hidden, kGroup)),
          heads_stride(round_up(shape.query_rows(), kGroup)),
          inner_stride(round_up(shape.intermediate, kGroup)),
          x(floats(hidden_stride)),
          normed(floats(hidden_stride)),
          attended(floats(heads_stride)),
          inner(floats(inner_stride)),
          added(floats(pad_rows(shape.hidden))),
          qkv(floats(QkvLayout(shape).rows)),
          gate_up(floats(GateUpLayout(shape).rows)),
          activations(kernels.activations, kBatchTokens,
                      std::max({shape.hidden, shape.query_rows(), shape.intermediate})) {
        for (int i = 0; i < threads; ++i) {
            matmul_scratch.emplace_back(static_cast<std::size_t>(kernels.matmul_scratch_bytes(kBatchTokens)));
            attention_scratch.emplace_back(
                static_cast<std::size_t>(attention_scratch_floats(shape.head_size)) * 4);
        }
    }

    static Buffer floats(std::int64_t stride) {
        return Buffer(static_cast<std::size_t>(kBatchTokens * stride) * 4);
    }
    static float* at(const Buffer& buffer, std::int64_t stride, std::int64_t row) {
        return reinterpret_cast<float*>(buffer.data()) + row * stride;
    }

    const std::int64_t hidden_stride;
    const std::int64_t heads_stride;
    const std::int64_t inner_stride;
    Buffer x, normed, attended, inner, added, qkv, gate_up;
    Activations activations;
    std::vector<Buffer> matmul_scratch;
    std::vector<Buffer> attention_scratch;
};

Model::Model(const ModelShape& shape, int threads, const std::string& kernels, bool is_exact,
             const char* packed)
    : shape_(shape),
      qkv_(shape),
      gate_up_(shape),
      kernels_(find_kernels(kernels)),
      is_exact_(is_exact),
      is_packed_(packed != nullptr),
      pool_(threads),
      final_norm_(static_cast<std::size_t>(shape.hidden)),
      work_(std::make_unique<Workspace>(shape, kernels_, threads)) {
    const auto add_matrix = [&packed](std::int64_t rows, std::int64_t columns, int bits) {
        PackedMatrix matrix(rows, columns, bits, packed);
        if (packed != nullptr) packed += round_up(matrix.bytes(), kPartAlignment);
        return matrix;
    };
    head_ = add_matrix(shape.vocabulary, shape.hidden, shape.head_bits);  // the order of packed_parts()
    for (std::int64_t i = 0; i < shape.layers; ++i) {
        Layer layer;
        layer.qkv = add_matrix(qkv_.rows, shape.hidden, shape.bits);
        layer.output = add_matrix(shape.hidden, shape.query_rows(), shape.bits);
        layer.gate_up = add_matrix(gate_up_.rows, shape.hidden, shape.bits);
        layer.down = add_matrix(shape.hidden, shape.intermediate, shape.bits);
        layer.attention_norm.resize(static_cast<std::size_t>(shape.hidden));
        layer.mlp_norm.resize(static_cast<std::size_t>(shape.hidden));
        layers_.push_back(std::move(layer));
    }
    if (shape.rope_theta <= 0) return;
    const std::int64_t half = shape.head_size / 2;
    for (std::int64_t position = 0; position < shape.context; ++position) {
        for (std::int64_t i = 0; i < half; ++i) {
            // The angle in float32, as the official code computes it.
            const float frequency = static_cast<float>(
                std::pow(shape.rope_theta, -static_cast<double>(i) / static_cast<double>(half)));
            const double angle = static_cast<float>(position) * frequency;
            cosines_.push_back(static_cast<float>(std::cos(angle)));
            sines_.push_back(static_cast<float>(std::sin(angle)));
        }
    }
}

Model::~Model() = default;

std::vector<const PackedMatrix*> Model::packed_parts() const {
    std::vector<const PackedMatrix*> parts = {&head_};
    for (const Layer& layer : layers_) {
        for (const PackedMatrix* matrix : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
            parts.push_back(matrix);
        }
    }
    return parts;
}

std::int64_t Model::packed_bytes() const {
    std::int64_t bytes = 0;
    for (const PackedMatrix* part : packed_parts()) bytes += round_up(part->bytes(), kPartAlignment);
    return bytes;
}

std::int64_t Model::weight_bytes() const {
    std::int64_t bytes = 0;
    for (const PackedMatrix* part : packed_parts()) bytes += part->bytes();
    return bytes;
}

Model::Part Model::find(Linear which, std::int64_t index) {
    if (which == Linear::kHead) return {&head_, 0};
    Layer& layer = layers_[static_cast<std::size_t>(index)];
    switch (which) {
        case Linear::kQuery: return {&layer.qkv, 0};
        case Linear::kKey: return {&layer.qkv, qkv_.keys};
        case Linear::kValue: return {&layer.qkv, qkv_.values};
        case Linear::kOutput: return {&layer.output, 0};
        case Linear::kGate: return {&layer.gate_up, 0};
        case Linear::kUp: return {&layer.gate_up, gate_up_.up};
        default: return {&layer.down, 0};
    }
}

void Model::pack(Linear which, std::int64_t layer, const GptqView& source) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Part part = find(which, layer);
    part.matrix->pack(part.first_row, source, pool_);
}

void Model::set_norm(Norm which, std::int64_t layer, const float* weight) {
    std::vector<float>& target = which == Norm::kFinal ? final_norm_
                                 : which == Norm::kAttention
                                     ? layers_[static_cast<std::size_t>(layer)].attention_norm
                                     : layers_[static_cast<std::size_t>(layer)].mlp_norm;
    target.assign(weight, weight + shape_.hidden);
}

void Model::set_profile(bool is_on) {
    const std::lock_guard<std::mutex> lock(mutex_);
    profile_ = is_on ? std::make_unique<Profile>() : nullptr;
}

void Model::forward(const std::vector<Request>& requests, float* logits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Row> rows;
    for (const Request& request : requests) {
        for (std::int64_t i = 0; i < request.count; ++i) {
            rows.push_back({request.sequence, request.sequence->length + i, request.tokens[i],
                            i >= request.count - request.logit_rows});
            if (static_cast<std::int64_t>(rows.size()) == kBatchTokens) {
                run_batch(rows, logits);
                rows.clear();
            }
        }
    }
    if (!rows.empty()) run_batch(rows, logits);
    for (const Request& request : requests) request.sequence->length += request.count;
}

// Run one batch through all layers; `logits` moves on behind the rows that were written.
void Model::run_batch(const std::vector<Row>& rows, float*& logits) {
    Workspace& work = *work_;
    const auto tokens = static_cast<std::int64_t>(rows.size());
    look_up(rows);
    for (std::int64_t i = 0; i < shape_.layers; ++i) {
        const Layer& layer = layers_[static_cast<std::size_t>(i)];
        run_attention(layer, i, rows);
        run_mlp(layer, tokens);
    }
    std::int64_t logit_rows = 0;
    for (std::int64_t i = 0; i < tokens; ++i) {
        if (!rows[static_cast<std::size_t>(i)].wants_logits) continue;
        kernels_.rms_norm(work.at(work.x, work.hidden_stride, i), final_norm_.data(), shape_.norm_eps,
                          shape_.hidden, work.at(work.normed, work.hidden_stride, logit_rows++));
    }
    if (logit_rows == 0) return;
    multiply(Work::kHead, head_, work.at(work.normed, work.hidden_stride, 0), logit_rows, logits);
    logits += logit_rows * logits_stride();
}

void Model::look_up(const std::vector<Row>& rows) {
    const Stopwatch watch(profile_.get(), Work::kEmbedding);
    Workspace& work = *work_;
    const auto tokens = static_cast<std::int64_t>(rows.size());
    pool_.parallel_for(tokens, 4, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::uint16_t* from = embedding_ + rows[static_cast<std::size_t>(i)].token * shape_.hidden;
            kernels_.from_half(from, shape_.hidden, work.at(work.x, work.hidden_stride, i));
        }
    });
}

void Model::run_attention(const Layer& layer, std::int64_t index, const std::vector<Row>& rows) {
    Workspace& work = *work_;
    const auto tokens = static_cast<std::int64_t>(rows.size());
    norm(work.at(work.x, work.hidden_stride, 0), layer.attention_norm.data(), tokens);
    multiply(Work::kQkv, layer.qkv, work.at(work.normed, work.hidden_stride, 0), tokens,
             work.at(work.qkv, 0, 0));
    store_keys_values(index, rows);
    attend(index, rows);
    multiply(Work::kOutput, layer.output, work.at(work.attended, work.heads_stride, 0), tokens,
             work.at(work.added, 0, 0));
    add_residual(tokens, layer.output.padded_rows());
}

void Model::run_mlp(const Layer& layer, std::int64_t tokens) {
    Workspace& work = *work_;
    norm(work.at(work.x, work.hidden_stride, 0), layer.mlp_norm.data(), tokens);
    multiply(Work::kGateUp, layer.gate_up, work.at(work.normed, work.hidden_stride, 0), tokens,
             work.at(work.gate_up, 0, 0));
    apply_swiglu(tokens);
    multiply(Work::kDown, layer.down, work.at(work.inner, work.inner_stride, 0), tokens,
             work.at(work.added, 0, 0));
    add_residual(tokens, layer.down.padded_rows());
}

void Model::apply_swiglu(std::int64_t tokens) {
    const Stopwatch watch(profile_.get(), Work::kSwiglu);
    Workspace& work = *work_;
    // A token is cut into pieces too, so that the pool shares even a single one.
    constexpr std::int64_t kPieces = 4;
    const std::int64_t piece = round_up((shape_.intermediate + kPieces - 1) / kPieces, 8);
    pool_.parallel_for(tokens * kPieces, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t first = i % kPieces * piece;
            const std::int64_t count = std::min(piece, shape_.intermediate - first);
            if (count <= 0) continue;
            const float* gate = work.at(work.gate_up, gate_up_.rows, i / kPieces) + first;
            kernels_.swiglu(gate, gate + gate_up_.up, count,
                            work.at(work.inner, work.inner_stride, i / kPieces) + first);
        }
    });
}

// Rotate queries and keys where the model has RoPE, and put keys and values into the caches.
void Model::store_keys_values(std::int64_t layer, const std::vector<Row>& rows) {
    const Stopwatch watch(profile_.get(), Work::kKeysValues);
    Workspace& work = *work_;
    const std::int64_t size = shape_.head_size, half = size / 2;
    const KvConversions convert = {kernels_.to_half, kernels_.to_int8};
    // Neighbouring positions share cache lines, so a thread stores several of them.
    constexpr std::int64_t kLinePositions = 16;
    const auto tokens = static_cast<std::int64_t>(rows.size());
    const std::int64_t grain = tokens < kLinePositions * pool_.threads() ? 1 : kLinePositions;
    pool_.parallel_for(tokens, grain, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const Row& row = rows[static_cast<std::size_t>(i)];
            float* qkv = work.at(work.qkv, qkv_.rows, i);
            if (!cosines_.empty()) {
                const float* cosine = cosines_.data() + row.position * half;
                const float* sine = sines_.data() + row.position * half;
                for (std::int64_t h = 0; h < shape_.heads; ++h)
                    kernels_.rotate(qkv + h * size, cosine, sine, half);
                for (std::int64_t h = 0; h < shape_.kv_heads; ++h) {
                    kernels_.rotate(qkv + qkv_.keys + h * size, cosine, sine, half);
                }
            }
            for (std::int64_t h = 0; h < shape_.kv_heads; ++h) {
                row.sequence->cache.store(convert, layer, h, row.position, qkv + qkv_.keys + h * size,
                                          qkv + qkv_.values + h * size);
            }
        }
    });
}

void Model::attend(std::int64_t layer, const std::vector<Row>& rows) {
    // Tiles of neighbouring tokens of one sequence: all their queries of one key-value head make one task.
    struct Tile {
        std::int64_t first;
        std::int64_t count;
    };
    Workspace& work = *work_;
    const auto attend = shape_.kv_bits == 8 ? kernels_.attend_int8 : kernels_.attend;
    const std::int64_t size = shape_.head_size;
    const std::int64_t heads_per_kv_head = shape_.heads / shape_.kv_heads;
    const std::int64_t tile_tokens = std::max<std::int64_t>(1, kMaxQueries / heads_per_kv_head);
    std::vector<Tile> tiles;
    const auto tokens = static_cast<std::int64_t>(rows.size());
    for (std::int64_t i = 0; i < tokens; ++i) {
        const bool continues =
            !tiles.empty() && tiles.back().count < tile_tokens &&
            rows[static_cast<std::size_t>(i)].sequence == rows[static_cast<std::size_t>(i - 1)].sequence;
        if (continues) {
            ++tiles.back().count;
        } else {
            tiles.push_back({i, 1});
        }
    }
    std::reverse(tiles.begin(), tiles.end());  // late tokens see more keys: the longest tasks go first
    std::int64_t read = 0, seen = 0;           // positions, by tiles and by tokens
    for (const Tile& tile : tiles) {
        const std::int64_t position = rows[static_cast<std::size_t>(tile.first)].position;
        read += position + tile.count;
        seen += tile.count * position + tile.count * (tile.count + 1) / 2;
    }
    const Stopwatch watch(profile_.get(), Work::kAttention,
                          read * shape_.kv_bytes_per_token() / shape_.layers, seen * shape_.query_rows() * 2);
    const auto tasks = static_cast<std::int64_t>(tiles.size()) * shape_.kv_heads;
    pool_.parallel_for(tasks, 1, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const Tile& tile = tiles[static_cast<std::size_t>(i / shape_.kv_heads)];
            const std::int64_t kv_head = i % shape_.kv_heads;
            const KvCache& cache = rows[static_cast<std::size_t>(tile.first)].sequence->cache;
            const float* query[kMaxQueries];
            float* out[kMaxQueries];
            std::int64_t position[kMaxQueries];
            float slope[kMaxQueries];
            std::int64_t queries = 0;
            const std::int64_t first_head = kv_head * heads_per_kv_head;
            for (std::int64_t token = tile.first; token < tile.first + tile.count; ++token) {
                for (std::int64_t h = first_head; h < first_head + heads_per_kv_head; ++h, ++queries) {
                    query[queries] = work.at(work.qkv, qkv_.rows, token) + h * size;
                    out[queries] = work.at(work.attended, work.heads_stride, token) + h * size;
                    position[queries] = rows[static_cast<std::size_t>(token)].position;
                    slope[queries] =
                        shape_.alibi_slopes.empty() ? 0.0f : shape_.alibi_slopes[static_cast<std::size_t>(h)];
                }
            }
            attend(
                {cache.keys(layer, kv_head), cache.values(layer, kv_head), size, queries, query, out,
                 position, slope, 1.0f / std::sqrt(static_cast<float>(size)),
                 reinterpret_cast<float*>(work.attention_scratch[static_cast<std::size_t>(thread)].data())});
        }
    });
}

void Model::norm(const float* x, const float* weight, std::int64_t tokens) {
    const Stopwatch watch(profile_.get(), Work::kNorm);
    Workspace& work = *work_;
    pool_.parallel_for(tokens, 4, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            kernels_.rms_norm(x + i * work.hidden_stride, weight, shape_.norm_eps, shape_.hidden,
                              work.at(work.normed, work.hidden_stride, i));
        }
    });
}

// y[token * padded rows + row] = matrix times x, whose rows are full groups apart.
void Model::multiply(Work kind, const PackedMatrix& matrix, const float* x, std::int64_t tokens, float* y) {
    Workspace& work = *work_;
    const std::int64_t x_stride = matrix.groups() * kGroup;
    if (!is_exact_) {
        const Stopwatch watch(profile_.get(), Work::kQuantize);
        work.activations.reshape(tokens, matrix.columns(), matrix.bits(), &matrix == &head_);
        // By tiles: threads that wrote neighbouring tokens of one tile would wait for each other's cache lines.
        pool_.parallel_for(work.activations.tiles(), 1, [&](int, std::int64_t begin, std::int64_t end) {
            const std::int64_t last = work.activations.tile_start(end);
            for (std::int64_t i = work.activations.tile_start(begin); i < last; ++i) {
                work.activations.store(i, x + i * x_stride, matrix.columns());
            }
        });
    }
    const Stopwatch watch(profile_.get(), kind, matrix.bytes(), tokens * matrix.rows() * matrix.columns());
    const std::int64_t unit = kernels_.matmul_blocks;
    const std::int64_t grain =
        std::clamp<std::int64_t>(matrix.blocks() / (pool_.threads() * 16) / unit * unit, unit, 16);
    pool_.parallel_for(matrix.blocks(), grain, [&](int thread, std::int64_t begin, std::int64_t end) {
        const MatmulTask task = {&matrix,
                                 begin,
                                 end,
                                 y,
                                 matrix.padded_rows(),
                                 work.matmul_scratch[static_cast<std::size_t>(thread)].data()};
        if (is_exact_) {
            kernels_.matmul_exact(task, x, x_stride, tokens);
        } else {
            kernels_.matmul(task, work.activations);
        }
    });
}

void Model::add_residual(std::int64_t tokens, std::int64_t stride) {
    const Stopwatch watch(profile_.get(), Work::kResidual);
    Workspace& work = *work_;
    pool_.parallel_for(tokens, 4, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            kernels_.add(work.at(work.x, work.hidden_stride, i), work.at(work.added, stride, i),
                         shape_.hidden);
        }
    });
}

}  // namespace baichuan2
