// The table of kernels: one row an instruction set, chosen at run time.
//
// Every kernel has a scalar twin with the same meaning, and both are tested against numpy.
// A result never depends on how many tokens, rows or threads a call covers:
// for each output the order of float operations is fixed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout/activations.h"
#include "layout/packed_matrix.h"

namespace baichuan2 {

// Rows of blocks [first_block, last_block) of a matrix, for all tokens: y[token * stride + row].
struct MatmulTask {
    const PackedMatrix* matrix;
    std::int64_t first_block;
    std::int64_t last_block;
    float* y;
    std::int64_t stride;
    char* scratch;  // Kernels::matmul_scratch_bytes() of the calling thread
};

// Attention of queries that share one key-value head. Key 0 is position 0.
//   keys   float16 [position / 8][head size][8]      values  float16 [position][head size]
// The cache is readable up to the next multiple of kKeyBlock positions.
struct AttentionTask {
    const std::uint16_t* keys;
    const std::uint16_t* values;
    std::int64_t head_size;
    std::int64_t queries;          // at most kMaxQueries
    const float* const* query;     // each head_size long
    float* const* out;             // each head_size long
    const std::int64_t* position;  // query i sees keys 0 ... position[i]
    const float* slope;            // ALiBi: the score gets slope[i] * (key - position[i]); 0 without
    float scale;
    float* scratch;  // attention_scratch_floats(head_size) of the calling thread
};

constexpr std::int64_t kMaxQueries = 48;
constexpr std::int64_t kKeyBlock = 64;

inline std::int64_t attention_scratch_floats(std::int64_t head_size) {
    // queries, outputs, scores, one block of keys and one of values
    return 2 * kMaxQueries * head_size + kMaxQueries * kKeyBlock + 2 * kKeyBlock * head_size;
}

struct Kernels {
    const char* name;
    // Bytes of scratch a matmul of up to `tokens` tokens needs in each thread.
    std::int64_t (*matmul_scratch_bytes)(std::int64_t tokens);
    void (*quantize)(const float* x, std::int64_t columns, const ActivationSlot& slot);
    void (*matmul)(const MatmulTask& task, const Activations& x);
    // float32 activations x[token * x_stride + column], columns filled up with zeros to whole groups
    void (*matmul_exact)(const MatmulTask& task, const float* x, std::int64_t x_stride, std::int64_t tokens);
    void (*attend)(const AttentionTask& task);
    void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t count, float* out);
    void (*swiglu)(const float* gate, const float* up, std::int64_t count, float* out);
    void (*add)(float* x, const float* y, std::int64_t count);
    // rotate x by halves: (x[i], x[i + half]) by the angle whose cosine and sine are given
    void (*rotate)(float* x, const float* cosine, const float* sine, std::int64_t half);
    void (*to_half)(const float* x, std::int64_t count, std::uint16_t* out);
    void (*from_half)(const std::uint16_t* x, std::int64_t count, float* out);
    // Multiply and add weights of `bits` bits and activations held in registers: the ceiling of matmul.
    // Returns the number of multiplications.
    std::int64_t (*multiply_rounds)(int bits, std::int64_t rounds);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
#endif

// The kernels this machine can run, the fastest first.
std::vector<const Kernels*> available_kernels();

// The kernels of that name, the fastest for "". Throws std::invalid_argument where the machine has none such.
const Kernels& find_kernels(const std::string& name);

}  // namespace baichuan2
