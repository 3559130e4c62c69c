// The Hadamard transform of a head: sums and differences of all its columns, so that none stands out.
//
// Dot products of two transformed vectors are those of the vectors, times the length of a block; to transform twice is
// to multiply with that length. A length is a power of two, so the factor is exact: blocks are as long as the head
// size allows.
#pragma once

#include <cstdint>
#include <cstring>

#include "float16.h"
#include "layout/kv_cache.h"

namespace baichuan2 {

// The greatest power of two that divides the head size.
BAICHUAN2_INLINE std::int64_t hadamard_length(std::int64_t size) { return size & -size; }

// Each stage adds and subtracts the halves and interleaves the results; after all of them the order is the first one.
BAICHUAN2_INLINE void hadamard(float* x, std::int64_t size) {
    const std::int64_t length = hadamard_length(size), half = length / 2;
    float next[KvCache::kMaxHeadSize];
    for (float* block = x; block < x + size; block += length) {
        for (std::int64_t stage = 1; stage < length; stage *= 2) {
            for (std::int64_t i = 0; i < half; ++i) {
                next[2 * i] = block[i] + block[i + half];
                next[2 * i + 1] = block[i] - block[i + half];
            }
            std::memcpy(block, next, static_cast<std::size_t>(length) * sizeof *next);
        }
    }
}

}  // namespace baichuan2
