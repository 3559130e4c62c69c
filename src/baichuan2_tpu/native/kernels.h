// The table of kernels: one row per instruction set, chosen at run time. Nothing else chooses.
//
// Every kernel has a scalar twin with the same meaning, and both are tested against numpy.
// A result never depends on how many tokens, rows or threads a call covers:
// for each output the order of float operations is fixed.
//
// What an instruction set X brings; scalar/ is the plain example, the others are the fast ones. The Arm sets
// share what neon/ has, and differ in a dot_X.h:
//
//   X/simd_X.h          eight floats and the operations on them,
//      |                and how many sums its registers hold
//      +-> generic/     written once over those: matmul_exact, attend, rms_norm, search_ranges, ...
//      |      |
//   X/int8_dots_X.h     sums of products for attention over int8; generic/int8_dots.h where a set has none
//      |      |
//   X/activations_X.h   an ActivationFormat: how many tokens a tile of quantised activations holds,
//      |      |         and what lies in it
//      +-> X/matmul_X.h packed weights times those tiles, in exact integer sums
//             |
//   X/kernels_X.cpp     its row of the table; the only file that is compiled for X (CMakeLists.txt)
//             |
//   kernels.cpp         tells whether this processor has X, and ranks it
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "layout/activations.h"
#include "layout/kv_cache.h"
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

// Attention of queries that share one key-value head, over its keys and values as KvCache holds them.
struct AttentionTask {
    char* keys;
    char* values;
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

inline std::int64_t attention_scratch_floats(std::int64_t head_size) {
    // float16: queries, outputs, scores, one block of keys and one of values; int8 needs less
    return 2 * kMaxQueries * head_size + kMaxQueries * kKeyBlock + 2 * kKeyBlock * head_size;
}

// Weights beyond this are refused: no sound checkpoint has them, and float16 activations could not follow.
constexpr float kWeightLimit = 65504.0f;

// A group's scale, as float16 bits, and its zero.
struct GroupRange {
    std::uint16_t scale;
    std::uint8_t zero;
};

// One row of weights whose groups get ranges and integers: see quantize/range_search.h.
struct RangeSearchTask {
    const float* weights;     // [columns]
    const float* importance;  // [columns], or null
    std::size_t columns;
    std::size_t group_size;
    int bits;
    std::uint8_t* quantized;  // [columns]
    GroupRange* ranges;       // [group]
    float* scratch;           // range_search_scratch_floats(group_size)
};

constexpr std::size_t range_search_scratch_floats(std::size_t group_size) { return 2 * (group_size + 8); }

// Columns that are rounded in order, for every row: see quantize/gptq_rounding.h. Arrays are row-major.
struct GptqBlock {
    std::size_t rows;
    std::size_t columns;
    std::size_t groups;
    int bits;
    const float* values;           // [row][column]
    const float* targets;          // [row][column]
    const float* feedback;         // [column][column], of which the part above the diagonal is used
    const float* scales;           // [row][group], above 0
    const std::uint8_t* zeros;     // [row][group]
    const std::int32_t* group_of;  // [column]
    std::uint8_t* quantized;       // [row][column]
    float* errors;                 // [row][column]
};

struct Kernels {
    const char* name;

    // The set's own: quantised weights times quantised activations.

    ActivationFormat activations;
    // Blocks of a matrix that `matmul` takes together: tasks should have a multiple of it.
    std::int64_t matmul_blocks;
    // Bytes of scratch a matmul of up to `tokens` tokens needs in each thread.
    std::int64_t (*matmul_scratch_bytes)(std::int64_t tokens);
    void (*matmul)(const MatmulTask& task, const Activations& x);
    // Multiply and add weights of `bits` bits and activations held in registers: the ceiling of matmul.
    // Returns the number of multiplications.
    std::int64_t (*multiply_rounds)(int bits, std::int64_t rounds);

    // Written once in generic/, compiled for each set.

    // float32 activations x[token * x_stride + column], columns padded with zeros to whole groups
    void (*matmul_exact)(const MatmulTask& task, const float* x, std::int64_t x_stride, std::int64_t tokens);
    void (*attend)(const AttentionTask& task);       // keys and values in float16
    void (*attend_int8)(const AttentionTask& task);  // keys and values in int8
    void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t count, float* out);
    void (*swiglu)(const float* gate, const float* up, std::int64_t count, float* out);
    void (*add)(float* x, const float* y, std::int64_t count);
    // rotate x by halves: (x[i], x[i + half]) by the angle whose cosine and sine are given
    void (*rotate)(float* x, const float* cosine, const float* sine, std::int64_t half);
    void (*to_half)(const float* x, std::int64_t count, std::uint16_t* out);
    void (*from_half)(const std::uint16_t* x, std::int64_t count, float* out);
    // The same numbers on every instruction set: see quantize_row.h. Returns the scale.
    float (*to_int8)(const float* x, std::int64_t count, std::uint8_t* codes);
    // The same bits on every instruction set. False where a weight is not a number within kWeightLimit.
    bool (*search_ranges)(const RangeSearchTask& task);
    // The same bits on every instruction set. `values` is scratch for one row of columns.
    void (*round_row)(const GptqBlock& block, std::size_t row, float* values);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
#if defined(BAICHUAN2_HAS_AVX_VNNI)
extern const Kernels kAvxVnniKernels;
#endif
extern const Kernels kAvx512VnniKernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const Kernels kNeonDotprodKernels;
#if defined(BAICHUAN2_HAS_I8MM)
extern const Kernels kNeonI8mmKernels;
#endif
#endif

// The kernels this machine can run, the fastest first.
std::vector<const Kernels*> available_kernels();

// The kernels of that name, the fastest for "". Throws std::invalid_argument where the machine has none such.
const Kernels& find_kernels(const std::string& name);

}  // namespace baichuan2
