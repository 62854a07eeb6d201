// Attention over the path from the root to a node: never a mask, never a key that is not an ancestor.
// Compiled per instruction set.
#include SECONDPASS_VEC_HEADER

#include "isa_functions.h"
#include "vec_math.h"

namespace secondpass {
namespace {

// What a root-mean-square norm over one head multiplies with.
inline float norm_factor(const float* x, std::size_t dim, float epsilon) {
    float squares = 0.0f;
    std::size_t i = 0;
    if (kLanes <= dim) {
        Vec sums = broadcast(0.0f);
        for (; i + kLanes <= dim; i += kLanes) sums = multiply_add(load(x + i), load(x + i), sums);
        squares = reduce_add(sums);
    }
    for (; i < dim; ++i) squares += x[i] * x[i];
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + epsilon);
}

inline void scale(const float* x, std::size_t dim, float factor, float* y) {
    std::size_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) store(y + i, multiply(load(x + i), broadcast(factor)));
    for (; i < dim; ++i) y[i] = x[i] * factor;
}

// Turns factor * (x[i], x[i + dim / 2]) by the angle i (Su et al., arXiv 2104.09864). Nothing that it has
// stored is read again: y is in no cache yet.
inline void rotate(const float* x, std::size_t dim, float factor, const float* cos, const float* sin,
                   float* y) {
    const std::size_t half = dim / 2;
    std::size_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const Vec first = multiply(load(x + i), broadcast(factor));
        const Vec second = multiply(load(x + i + half), broadcast(factor));
        const Vec c = load(cos + i);
        const Vec s = load(sin + i);
        store(y + i, subtract(multiply(first, c), multiply(second, s)));
        store(y + i + half, add(multiply(first, s), multiply(second, c)));
    }
    for (; i < half; ++i) {
        const float first = x[i] * factor;
        const float second = x[i + half] * factor;
        y[i] = first * cos[i] - second * sin[i];
        y[i + half] = first * sin[i] + second * cos[i];
    }
}

inline void pad(float* y, std::size_t dim, std::size_t stride) {
    for (std::size_t i = dim; i < stride; ++i) y[i] = 0.0f;
}

// A head of queries or keys.
inline void place_head(const SplitArgs& a, std::size_t r, const float* x, float* y) {
    const std::size_t dim = a.heads.dim;
    const float factor = a.epsilon < 0.0f ? 1.0f : norm_factor(x, dim, a.epsilon);
    if (a.cos == nullptr)
        scale(x, dim, factor, y);
    else
        rotate(x, dim, factor, a.cos[r], a.sin[r], y);
    pad(y, dim, a.heads.stride);
}

// One head of one row, and what it reads.
//   query (stride,); keys, values at the head's place in stored row 0
struct Head {
    const float* query;
    const float* keys;
    const float* values;
    const std::int32_t* path;
    std::size_t length;
    std::size_t row_floats;
    std::size_t stride;
};

inline const float* at(const Head& head, const float* first, std::size_t j) {
    return first + static_cast<std::size_t>(head.path[j]) * head.row_floats;
}

// Product of a query with one key, not yet added up.
template <std::size_t kStride>
inline Vec product(const Head& head, std::size_t j) {
    const std::size_t stride = kStride > 0 ? kStride : head.stride;
    const float* key = at(head, head.keys, j);
    Vec sum = multiply(load(head.query), load(key));
#pragma GCC unroll 4
    for (std::size_t i = kLanes; i < stride; i += kLanes)
        sum = multiply_add(load(head.query + i), load(key + i), sum);
    return sum;
}

// scores[j] = query . key[j] * factor for the whole path, then numbers that vanish in a softmax up to a
// multiple of kLanes. kStride is the stride where that is known to the compiler, else 0.
template <std::size_t kStride>
inline void score_keys(const Head& head, float factor, float* scores) {
    for (std::size_t first = 0; first < head.length; first += kLanes) {
        const std::size_t count = head.length - first < kLanes ? head.length - first : kLanes;
        Vec products[kLanes];
        for (std::size_t lane = 0; lane < count; ++lane)
            products[lane] = product<kStride>(head, first + lane);
        for (std::size_t lane = count; lane < kLanes; ++lane) products[lane] = broadcast(0.0f);
        const Vec sums = multiply(reduce_add_each(products), broadcast(factor));
        store(scores + first, first_lanes(count, sums, broadcast(-1.0e38f)));
    }
}

// scores = 2^(scores - highest); returns their sum.
inline float exponentiate(std::size_t length, float* scores) {
    Vec highest = load(scores);
    for (std::size_t j = kLanes; j < length; j += kLanes)
        highest = maximum(highest, load(scores + j));
    const Vec most = broadcast(reduce_maximum(highest));
    Vec sums = broadcast(0.0f);
    for (std::size_t j = 0; j < length; j += kLanes) {
        const Vec e = power_of_two(subtract(load(scores + j), most));
        store(scores + j, e);
        sums = add(sums, e);
    }
    return reduce_add(sums);
}

// mixed = factor * sum of weight[j] * value[j], kWidth floats from `from` on.
template <std::size_t kWidth>
inline void mix_values(const Head& head, std::size_t from, const float* weights, float factor,
                       float* mixed) {
    constexpr std::size_t kVectors = kWidth / kLanes;
    Vec sums[kVectors];
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) sums[v] = broadcast(0.0f);
    for (std::size_t j = 0; j < head.length; ++j) {
        const float* value = at(head, head.values, j) + from;
        const Vec weight = broadcast(weights[j]);
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kVectors; ++v)
            sums[v] = multiply_add(weight, load(value + v * kLanes), sums[v]);
    }
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v)
        store(mixed + v * kLanes, multiply(sums[v], broadcast(factor)));
}

// Heads of 64 are what models have; any other width goes 16 floats at a time.
constexpr std::size_t kUsual = 64;

inline void mix_head(const Head& head, std::size_t dim, const float* scores, float share,
                     float* mixed) {
    constexpr std::size_t kStep = 16;
    if (dim == kUsual) return mix_values<kUsual>(head, 0, scores, share, mixed);
    alignas(64) float piece[kStep];
    for (std::size_t i = 0; i < dim; i += kStep) {
        mix_values<kStep>(head, i, scores, share, piece);
        const std::size_t count = dim - i < kStep ? dim - i : kStep;
        __builtin_memcpy(mixed + i, piece, count * sizeof(float));
    }
}

inline Head head_of(const AttendArgs& a, std::size_t r, std::size_t i) {
    const std::size_t padded = a.heads.count * a.heads.stride;
    const std::size_t at = i * a.heads.stride;
    return {a.query + r * padded + at, a.store[r] + at, a.store[r] + padded + at, a.path[r],
            a.length[r],               row_floats(a.heads), a.heads.stride};
}

// Asks for the stored rows of a path, but for those that the row above has asked for. They are scattered
// over more memory than the caches hold, and reading by heads is no pattern that a CPU would guess.
inline void prefetch_path(const AttendArgs& a, std::size_t r) {
    for (std::size_t j = 0; j < a.length[r]; ++j) {
        if (r > 0 && j < a.length[r - 1] && a.path[r][j] == a.path[r - 1][j]) continue;
        const std::size_t floats = row_floats(a.heads);
        prefetch<0>(a.store[r] + static_cast<std::size_t>(a.path[r][j]) * floats, floats);
    }
}

// Head i of `rows` rows, step by step: each step of a row waits for the one before, other rows' steps do
// not. Going by heads keeps what rows share of their paths in the first cache.
void attend_rows(const AttendArgs& a, std::size_t first, std::size_t rows, std::size_t i) {
    // As powers of two, scores need no more than a factor to become powers of e.
    const float factor = kLogTwoOfE / __builtin_sqrtf(static_cast<float>(a.heads.dim));
    float* scores[kAttendedRows];
    float sums[kAttendedRows];
    float* next = a.scratch;
    for (std::size_t r = 0; r < rows; ++r) {
        scores[r] = next;
        next += ceil_divide(a.length[first + r], kLanes) * kLanes;
        const Head head = head_of(a, first + r, i);
        a.heads.stride == kUsual ? score_keys<kUsual>(head, factor, scores[r])
                                 : score_keys<0>(head, factor, scores[r]);
    }
    for (std::size_t r = 0; r < rows; ++r) sums[r] = exponentiate(a.length[first + r], scores[r]);
    for (std::size_t r = 0; r < rows; ++r)
        mix_head(head_of(a, first + r, i), a.heads.dim, scores[r], 1.0f / sums[r],
                 a.mixed + ((first + r) * a.heads.count + i) * a.heads.dim);
}

}  // namespace

void SECONDPASS_ISA::split(const SplitArgs& a) {
    const std::size_t dim = a.heads.dim;
    const std::size_t all = a.heads.count * dim;
    const std::size_t padded = a.heads.count * a.heads.stride;
    for (std::size_t r = 0; r < a.R; ++r) {
        const float* x = a.qkv + r * 3 * all;
        for (std::size_t head = 0; head < a.heads.count; ++head, x += dim) {
            const std::size_t to = head * a.heads.stride;
            place_head(a, r, x, a.query + r * padded + to);
            place_head(a, r, x + all, a.stored[r] + to);
            float* value = a.stored[r] + padded + to;
            __builtin_memcpy(value, x + 2 * all, dim * sizeof(float));
            pad(value, dim, a.heads.stride);
        }
    }
}

// What a block of rows reads is asked for while the block before it is computed.
void SECONDPASS_ISA::attend(const AttendArgs& a) {
    const auto end_of = [&](std::size_t first) {
        return a.R - first < kRowBlock ? a.R : first + kRowBlock;
    };
    for (std::size_t r = 0; r < end_of(0); ++r) prefetch_path(a, r);
    for (std::size_t first = 0; first < a.R; first += kRowBlock) {
        const std::size_t end = end_of(first);
        for (std::size_t r = end; r < a.R && r < end + kRowBlock; ++r) prefetch_path(a, r);
        for (std::size_t i = 0; i < a.heads.count; ++i)
            for (std::size_t r = first; r < end; r += kAttendedRows)
                attend_rows(a, r, end - r < kAttendedRows ? end - r : kAttendedRows, i);
    }
}

}  // namespace secondpass
