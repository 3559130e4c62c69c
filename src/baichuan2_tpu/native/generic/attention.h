// Flash attention over a float16 cache, written once over eight floats.
//
// Keys come in blocks of 64 from position 0. For each query and block: scores, the running maximum and sum,
// then the weighted values. A query's float operations are the same whichever queries share its task: the
// microkernels differ in how many sums they carry side by side, never in a sum's order. How many that are is
// the instruction set's: Simd::kQueries, kKeyVectors and kValueVectors.
// A masked key adds an exact zero. Not here: int8 keys and values (attention_int8.h).
#pragma once

#include "generic/running_softmax.h"
#include "generic/with_count.h"
#include "kernels.h"

namespace baichuan2 {

template <class Simd>
class Attention {
    using Floats = typename Simd::Floats;

public:
    static void attend(const AttentionTask& task) { Attention(task).run(); }

private:
    explicit Attention(const AttentionTask& task)
        : task_(task),
          softmax_(task),
          size_(task.head_size),
          // Few queries read the cache once each: converting it to a buffer first would not pay.
          is_buffered_(task.queries > 2),
          q_(task.scratch),
          out_(q_ + kMaxQueries * size_),
          scores_(out_ + kMaxQueries * size_),
          keys_(scores_ + kMaxQueries * kKeyBlock),
          values_(keys_ + kKeyBlock * size_) {}

    void run() {
        const std::int64_t last = softmax_.last_key();
        for (std::int64_t i = 0; i < task_.queries; ++i) {
            for (std::int64_t d = 0; d < size_; ++d) {
                q_[i * size_ + d] = task_.query[i][d] * task_.scale;
                out_[i * size_ + d] = 0.0f;
            }
        }
        for (std::int64_t first = 0; first <= last; first += kKeyBlock) {
            const std::int64_t count = last + 1 - first < kKeyBlock ? last + 1 - first : kKeyBlock;
            run_block(first, count);
        }
        for (std::int64_t i = 0; i < task_.queries; ++i) {
            const float scale = 1.0f / softmax_.sum(i);
            for (std::int64_t d = 0; d < size_; ++d) task_.out[i][d] = out_[i * size_ + d] * scale;
        }
    }

    void run_block(std::int64_t first, std::int64_t count) {
        const auto* keys = reinterpret_cast<const std::uint16_t*>(task_.keys) + first * size_;
        const auto* values = reinterpret_cast<const std::uint16_t*>(task_.values) + first * size_;
        if (is_buffered_) {
            const std::int64_t key_count = (count + 7) / 8 * 8 * size_;
            for (std::int64_t i = 0; i < key_count; i += 8) Simd::store(keys_ + i, Simd::load_half(keys + i));
            for (std::int64_t i = 0; i < count * size_; i += 8)
                Simd::store(values_ + i, Simd::load_half(values + i));
        }
        for (std::int64_t i = 0; i < task_.queries; i += Simd::kQueries) {
            const std::int64_t left = task_.queries - i;
            const std::int64_t queries = left < Simd::kQueries ? left : Simd::kQueries;
            if (is_buffered_) {
                score_queries(i, queries, keys_, count);
            } else {
                score_queries(i, queries, keys, count);
            }
            for (std::int64_t j = i; j < i + queries; ++j) softmax_.weigh(j, first, scores_ + j * kKeyBlock);
            if (is_buffered_) {
                sum_queries(i, queries, values_, count);
            } else {
                sum_queries(i, queries, values, count);
            }
        }
    }

    static BAICHUAN2_INLINE Floats load(const float* p) { return Simd::load(p); }
    static BAICHUAN2_INLINE Floats load(const std::uint16_t* p) { return Simd::load_half(p); }

    // Fetch what is needed later into the second cache, which has more fetches under way than the first: one thread of
    // a Zen 4 decodes at 16 GB/s instead of 9.
    template <class Element>
    static BAICHUAN2_INLINE void fetch(const Element* p) {
        constexpr std::int64_t kElementsAhead = 8192;
        __builtin_prefetch(p + kElementsAhead, 0, 2);
    }

    template <class Element>
    void score_queries(std::int64_t i, std::int64_t queries, const Element* keys, std::int64_t count) {
        with_count<Simd::kQueries>(queries,
                                   [&](auto q) { score<q, Simd::template kKeyVectors<q>>(i, keys, count); });
    }

    // Scores of Q queries; V vectors of 8 keys side by side, enough sums to hide the latency of one.
    template <int Q, int V, class Element>
    void score(std::int64_t i, const Element* keys, std::int64_t count) {
        std::int64_t key = 0;
        for (; key + 8 * V <= (count + 7) / 8 * 8; key += 8 * V) score_keys<Q, V>(i, key, keys);
        for (; key < count; key += 8) score_keys<Q, 1>(i, key, keys);
        for (; key < kKeyBlock; key += 8) {
            for (int q = 0; q < Q; ++q) Simd::store(scores_ + (i + q) * kKeyBlock + key, Simd::all(0.0f));
        }
    }

    template <int Q, int V, class Element>
    BAICHUAN2_INLINE void score_keys(std::int64_t i, std::int64_t key, const Element* keys) {
        const Element* k = keys + key * size_;
        const float* q = q_ + i * size_;
        Floats sums[Q][V];
        for (int a = 0; a < Q; ++a) {
            for (int v = 0; v < V; ++v) sums[a][v] = Simd::all(0.0f);
        }
        for (std::int64_t d = 0; d < size_; ++d) {
            Floats column[V];
            for (int v = 0; v < V; ++v) {
                const Element* p = k + (v * size_ + d) * 8;
                if (sizeof(Element) == 2 && d % 4 == 0) fetch(p);
                column[v] = load(p);
            }
            for (int a = 0; a < Q; ++a) {
                const Floats x = Simd::all(q[a * size_ + d]);
                for (int v = 0; v < V; ++v) sums[a][v] = Simd::fma(column[v], x, sums[a][v]);
            }
        }
        for (int a = 0; a < Q; ++a) {
            for (int v = 0; v < V; ++v) Simd::store(scores_ + (i + a) * kKeyBlock + key + v * 8, sums[a][v]);
        }
    }

    template <class Element>
    void sum_queries(std::int64_t i, std::int64_t queries, const Element* values, std::int64_t count) {
        with_count<Simd::kQueries>(
            queries, [&](auto q) { sum<q, Simd::template kValueVectors<q>>(i, values, count); });
    }

    template <int Q, int V, class Element>
    void sum(std::int64_t i, const Element* values, std::int64_t count) {
        std::int64_t d = 0;
        for (; d + 8 * V <= size_; d += 8 * V) sum_columns<Q, V>(i, d, values, count);
        for (; d < size_; d += 8) sum_columns<Q, 1>(i, d, values, count);
    }

    template <int Q, int V, class Element>
    BAICHUAN2_INLINE void sum_columns(std::int64_t i, std::int64_t d, const Element* values,
                                      std::int64_t count) {
        const float* weights = scores_ + i * kKeyBlock;
        Floats sums[Q][V];
        for (int a = 0; a < Q; ++a) {
            const Floats correction = Simd::all(softmax_.correction(i + a));
            for (int v = 0; v < V; ++v) {
                sums[a][v] = Simd::mul(Simd::load(out_ + (i + a) * size_ + d + v * 8), correction);
            }
        }
        for (std::int64_t key = 0; key < count; ++key) {
            const Element* row = values + key * size_ + d;
            if (sizeof(Element) == 2) {
                for (int v = 0; v < V; v += 4) fetch(row + v * 8);
            }
            Floats column[V];
            for (int v = 0; v < V; ++v) column[v] = load(row + v * 8);
            for (int a = 0; a < Q; ++a) {
                const Floats weight = Simd::all(weights[a * kKeyBlock + key]);
                for (int v = 0; v < V; ++v) sums[a][v] = Simd::fma(column[v], weight, sums[a][v]);
            }
        }
        for (int a = 0; a < Q; ++a) {
            for (int v = 0; v < V; ++v) Simd::store(out_ + (i + a) * size_ + d + v * 8, sums[a][v]);
        }
    }

    const AttentionTask& task_;
    RunningSoftmax<Simd> softmax_;
    const std::int64_t size_;
    const bool is_buffered_;
    float* const q_;
    float* const out_;
    float* const scores_;
    float* const keys_;
    float* const values_;
};

}  // namespace baichuan2
