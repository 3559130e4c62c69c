// The forward pass of a Baichuan or Llama decoder over a ragged batch of tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"
#include "layout/kv_cache.h"
#include "layout/packed_matrix.h"
#include "profile.h"
#include "thread_pool.h"

namespace baichuan2 {

struct ModelShape {
    std::int64_t layers;
    std::int64_t hidden;
    std::int64_t intermediate;
    std::int64_t heads;
    std::int64_t kv_heads;
    std::int64_t head_size;
    std::int64_t vocabulary;
    std::int64_t context;
    float norm_eps;
    double rope_theta;                // 0 with ALiBi
    std::vector<float> alibi_slopes;  // one per head; empty with RoPE
    int bits;
    int head_bits;

    std::int64_t query_rows() const { return heads * head_size; }
    std::int64_t kv_rows() const { return kv_heads * head_size; }
};

// Queries, keys and values come from one matrix product; so do gate and up of the MLP.
// Each part begins at a full block of rows:
//
//   QkvLayout      | queries | padding | keys | padding | values | padding |
//                  0                   keys             values             rows
//   GateUpLayout   | gate | padding | up | padding |
//                  0                up             rows
struct QkvLayout {
    explicit QkvLayout(const ModelShape& shape);
    std::int64_t keys;
    std::int64_t values;
    std::int64_t rows;
};

struct GateUpLayout {
    explicit GateUpLayout(const ModelShape& shape);
    std::int64_t up;
    std::int64_t rows;
};

struct Sequence {
    Sequence(const ModelShape& shape) : cache(shape.layers, shape.kv_heads, shape.head_size, shape.context) {}
    KvCache cache;
    std::int64_t length = 0;
};

struct Request {
    Sequence* sequence;
    const std::int32_t* tokens;
    std::int64_t count;
    std::int64_t logit_rows;  // of the last tokens
};

enum class Linear { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kHead };
enum class Norm { kAttention, kMlp, kFinal };

class Model {
public:
    // Matrices begin at multiples of this in a file of packed weights.
    static constexpr std::int64_t kPartAlignment = 4096;

    // `packed` holds packed_bytes() of what packed_parts() of such a model returned, and outlives the model;
    // null for a model that is packed here.
    Model(const ModelShape& shape, int threads, const std::string& kernels, bool is_exact,
          const char* packed = nullptr);
    ~Model();

    const ModelShape& shape() const { return shape_; }
    const char* kernels_name() const { return kernels_.name; }
    std::int64_t weight_bytes() const;  // that one token reads

    // The matrices in the order of a file, in which each is padded to a multiple of kPartAlignment.
    std::vector<const PackedMatrix*> packed_parts() const;
    std::int64_t packed_bytes() const;
    bool is_packed() const { return is_packed_; }  // from the start

    void pack(Linear which, std::int64_t layer, const GptqView& source);
    void set_norm(Norm which, std::int64_t layer, const float* weight);
    // float16 (vocabulary, hidden); must outlive the model
    void set_embedding(const std::uint16_t* embedding) { embedding_ = embedding; }

    // Append the tokens of every request and write the logits that were asked for, request after request.
    // Rows of `logits` are logits_stride() apart. Nothing is checked here.
    void forward(const std::vector<Request>& requests, float* logits);
    std::int64_t logits_stride() const { return head_.padded_rows(); }

    // Count from zero what every forward pass does from now on, or no longer.
    void set_profile(bool is_on);
    // The totals since set_profile(true); empty without.
    const Profile* profile() const { return profile_.get(); }

private:
    struct Layer;
    struct Workspace;
    struct Row;
    struct Part;

    Part find(Linear which, std::int64_t layer);
    void run_batch(const std::vector<Row>& rows, float*& logits);
    void look_up(const std::vector<Row>& rows);
    void run_attention(const Layer& layer, std::int64_t index, const std::vector<Row>& rows);
    void run_mlp(const Layer& layer, std::int64_t tokens);
    void apply_swiglu(std::int64_t tokens);
    void store_keys_values(std::int64_t layer, const std::vector<Row>& rows);
    void attend(std::int64_t layer, const std::vector<Row>& rows);
    void norm(const float* x, const float* weight, std::int64_t tokens);
    void multiply(Work kind, const PackedMatrix& matrix, const float* x, std::int64_t tokens, float* y);
    void add_residual(std::int64_t tokens, std::int64_t stride);

    const ModelShape shape_;
    const QkvLayout qkv_;
    const GateUpLayout gate_up_;
    const Kernels& kernels_;
    const bool is_exact_;
    const bool is_packed_;
    ThreadPool pool_;
    std::mutex mutex_;
    std::vector<Layer> layers_;
    std::vector<float> final_norm_;
    PackedMatrix head_;
    const std::uint16_t* embedding_ = nullptr;
    std::vector<float> cosines_;  // [position][half head]
    std::vector<float> sines_;
    std::unique_ptr<Workspace> work_;
    std::unique_ptr<Profile> profile_;
};

}  // namespace baichuan2
