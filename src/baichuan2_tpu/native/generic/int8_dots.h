// Products of rows of 16-bit numbers with a block of int8 codes, in plain C++: the definition of the integers that
// every instruction set must reach.
//
// A matrix is steps of words, each with 4 codes of one lane: [step][lane][4]. A step of keys is 4 columns and a lane
// is a position; a step of values is 4 positions and a lane is a column.
//
// A set's own Dots have the same members. `prepare` may turn numbers into any form of the same size.
#pragma once

#include <cstdint>

#include "float16.h"
#include "layout/kv_cache.h"

namespace baichuan2 {

// Numbers of a row are within this: two signed bytes, high * 256 + low, can hold them. A sum of 256 products with
// codes up to 255 stays below 2^31.
constexpr int kMostNumber = 127 * 256 + 127;

struct Int8DotTask {
    const std::int16_t* rows;    // prepared, each of row_stride numbers
    const std::int32_t* totals;  // the sum of each row's numbers
    std::int64_t row_stride;
    std::int64_t count;  // of rows
    const std::uint8_t* codes;
    std::int64_t steps;       // of the rows; all numbers behind them are 0
    std::int64_t step_lanes;  // from one step to the next
    std::int64_t lanes;       // to compute: a multiple of 8
    std::int64_t ahead;       // where the codes lie that are fetched meanwhile, in bytes behind these
    std::int32_t* sums;       // [row][lane], of number * (code - kZeroCode); a row is sum_stride long
    std::int64_t sum_stride;
};

struct PlainDots {
    // Rows that are best multiplied together.
    static constexpr int kRows = 1;

    // Numbers as they are, a multiple of 4 of them.
    static BAICHUAN2_INLINE void prepare(std::int16_t* numbers, std::int64_t count) {
        static_cast<void>(numbers);
        static_cast<void>(count);
    }

    static BAICHUAN2_INLINE void multiply(const Int8DotTask& task) {
        for (std::int64_t row = 0; row < task.count; ++row) {
            for (std::int64_t lane = 0; lane < task.lanes; lane += 8) multiply_lanes(task, row, lane);
        }
    }

private:
    static BAICHUAN2_INLINE void multiply_lanes(const Int8DotTask& task, std::int64_t row,
                                                std::int64_t lane) {
        std::int32_t sums[8] = {};
        for (std::int64_t step = 0; step < task.steps; ++step) {
            const std::int16_t* x = task.rows + row * task.row_stride + step * 4;
            const std::uint8_t* codes = task.codes + (step * task.step_lanes + lane) * 4;
            for (int i = 0; i < 8; ++i) {
                for (int k = 0; k < 4; ++k) sums[i] += x[k] * (codes[i * 4 + k] - kZeroCode);
            }
        }
        for (int i = 0; i < 8; ++i) task.sums[row * task.sum_stride + lane + i] = sums[i];
    }
};

}  // namespace baichuan2
