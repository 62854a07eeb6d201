// What every instruction set provides, and the arguments it is given. Layouts stand here once.
//
// Everything is row-major. Rows of x come in blocks of at most kRowBlock, for `attend` in any number; a
// caller gives each thread its own rows and its own scratch, and gets the same bits however rows are
// cut into blocks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secondpass {

// Weight rows side by side in memory: the width of what is multiplied at a time.
constexpr std::size_t kPanel = 64;
// Rows of x that share one pass over a weight in the caches: a multiple of every tile's rows.
constexpr std::size_t kRowBlock = 48;
// Rows of x whose look-up tables are made together.
constexpr std::size_t kTableRows = 8;
// Rows whose attention is computed together.
constexpr std::size_t kAttendedRows = 8;
constexpr std::size_t kMaxLevels = 16;
constexpr std::size_t kBitsPerWord = 32;
// Bytes by which every float array that kernels read or write in whole vectors may be overrun.
constexpr std::size_t kAlignment = 64;

// How the 32 / bits codes of a word lie in it; p is the position of a code in its word.
//   kDot     code p at bit 8 * (p % 4) + bits * (p / 4): byte j holds the codes of columns 4 i + j
//   kLookup  bit b of code p at bit 8 * (p / 4 % 4) + 4 * plane + p % 4, plane = b for 2-bit codes
//            and p / 16 for 1-bit codes: each byte holds two subsets of four neighbors
//   kLookupBytes  the same words, but the 64 of a panel lie byte by byte: the first of each, then the second
enum class Layout : std::uint32_t { kDot = 0, kLookup = 1, kLookupBytes = 2 };

// How a row is scaled to int8 codes (quantized_lm/quant/activations.py is the definition).
enum class ActivationRule : std::uint32_t { kAbsmax = 0, kQuads = 1 };

// weight[n, k] = level(code[n, k]) * scale[n, k / group_size]
//   words  (P, G * W, 64) uint32   P = ceil(N / 64) panels, G = ceil(K / group_size) groups, W words
//                                  per group: every group starts on a word; what pads it is never seen,
//                                  because the codes of x are 0 there
//   scale  (P, G, 64)     float32
//   levels (16,)          int8     at 8 bits unused: there the code is the level itself, an int8
struct Weight {
    const std::uint32_t* words;
    const float* scale;
    const std::int8_t* levels;
    std::size_t N;
    std::size_t K;
    std::size_t group_size;
    std::size_t bits;  // 1, 2, 4 or 8
    Layout layout;
    ActivationRule rule;
};

static inline std::size_t ceil_divide(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// Asks for `count` floats to come into the second cache, to be written where kIsWritten is 1, read where 0.
template <int kIsWritten>
static inline void prefetch(const float* from, std::size_t count) {
    constexpr std::size_t kCacheLine = 16;
    for (std::size_t i = 0; i < count; i += kCacheLine) __builtin_prefetch(from + i, kIsWritten, 2);
}

static inline std::size_t panels_of(const Weight& w) { return ceil_divide(w.N, kPanel); }
static inline std::size_t groups_of(const Weight& w) { return ceil_divide(w.K, w.group_size); }
static inline std::size_t codes_per_word(const Weight& w) { return kBitsPerWord / w.bits; }
static inline std::size_t words_per_group(const Weight& w) {
    return ceil_divide(w.group_size, codes_per_word(w));
}
static inline std::size_t words_per_row(const Weight& w) {
    return groups_of(w) * words_per_group(w);
}
// Columns of x once every group is padded to whole words.
static inline std::size_t padded_columns(const Weight& w) {
    return words_per_row(w) * codes_per_word(w);
}
static inline std::size_t padded_rows(const Weight& w) { return panels_of(w) * kPanel; }
// Rows [first, first + count) of a weight; `first` is a multiple of kPanel.
static inline Weight some_rows(Weight w, std::size_t first, std::size_t count) {
    w.words += first * words_per_row(w);
    w.scale += first * groups_of(w);
    w.N = count;
    return w;
}
// Scratch that `linear` and `output` need, bytes: the look-up tables of kTableRows rows.
static inline std::size_t table_bytes(const Weight& w) {
    return w.layout != Layout::kDot ? kTableRows * padded_columns(w) * 4 : 0;
}
// Rows of x whose look-up tables are in the scratch at a time, kRowBlock where nothing is looked up. Tables
// take 4 bytes per column and row; those of one tile shall all but fit a first cache of 48 KiB.
static inline std::size_t rows_together(const Weight& w) {
    if (w.layout == Layout::kDot) return kRowBlock;
    constexpr std::size_t kBytes = 50 * 1024;
    std::size_t rows = kTableRows;
    while (rows > 1 && rows * padded_columns(w) * 4 > kBytes) rows /= 2;
    return rows;
}

// Rows of x as a weight's kernels read them, made by `quantize` for that weight or one that agrees
// with it in K, group_size, bits, layout, rule and levels.
//   codes (R, padded_columns) int8, kAlignment bytes more may be read
//   step  (R,)                float32; x[r, k] is about step[r] * codes[r, k]. NaN for a row that
//                             holds NaN, infinity or a magnitude above 2^100; its codes are 0
//   start (R, G)              int32, where the sum over a group starts; private to the kernels
struct Rows {
    std::int8_t* codes;
    float* step;
    std::int32_t* start;
};

// y = (x - mean) / sqrt(variance + epsilon) * gain + bias, the mean left out (0) unless subtracts_mean;
// variance is the mean of (x - mean)^2.
//   gain, bias (K,) float32 or null; kAlignment bytes more may be read
struct Norm {
    const float* gain;
    const float* bias;
    float epsilon;
    bool subtracts_mean;
};

// y[r, :] = norm(x[r, :]); y may be x.
//   x, y (R, K) float32
//   line (K + 16,) float32 scratch
struct NormArgs {
    const float* x;
    float* y;
    std::size_t R;
    std::size_t K;
    Norm norm;
    float* line;
};

// rows = the codes of x, or of norm(x) if norm is not null.
//   x    (R, K) float32, rows K apart
//   line (K + 16,) float32 scratch
struct QuantizeArgs {
    Weight weight;
    const float* x;
    std::size_t R;
    const Norm* norm;
    Rows rows;
    float* line;
};

enum class Activation : std::uint32_t { kNone = 0, kSquaredRelu = 1, kGeluTanh = 2 };

// y[r, n] = activation(sum over k of weight[n, k] * x[r, k] + bias[n]), added to y if `adds`.
// Sums of integers are exact; then per group float(sum) * scale, groups ascending, times step.
//   bias   (padded_rows,) float32 or null
//   y      (R, N) float32, rows y_stride apart
//   tables table_bytes(weight) bytes, 64-byte aligned. If `has_tables`, still those of a call before for
//          the same rows, at most rows_together(weight), and a weight that reads the same ones
struct LinearArgs {
    Weight weight;
    Rows rows;
    std::size_t R;
    const float* bias;
    Activation activation;
    bool adds;
    float* y;
    std::size_t y_stride;
    std::uint8_t* tables;
    bool has_tables = false;
};

// One logit that is asked for: weight[token] . x[row].
struct Question {
    std::int32_t token;   // [0, N)
    std::int32_t row;     // [0, R)
    std::int64_t answer;  // index into `logit`
};

// log_sum[r] = log of the sum over n < N of exp(weight[n] . x[r]); logit[q.answer] for every question.
//   questions (Q,) ascending by token
//   tile      (R, 64) float32 scratch
//   log_sum   (R,) float32
struct OutputArgs {
    Weight weight;
    Rows rows;
    std::size_t R;
    const Question* questions;
    std::size_t Q;
    float* tile;
    std::uint8_t* tables;
    float* logit;
    float* log_sum;
};

// The same number that `output` gives: weight[token] . x[row], for rows whose log_sum is known.
struct LogitArgs {
    Weight weight;
    Rows rows;
    std::size_t row;
    std::size_t token;
};

// y[t, k] = weight[tokens[t], k]
//   tokens (T,)   int64, in [0, N)
//   y      (T, K) float32
struct EmbedArgs {
    Weight weight;
    const std::int64_t* tokens;
    std::size_t T;
    float* y;
};

// x = a * x + b * other, `count` floats.
struct MixArgs {
    float* x;
    const float* other;
    std::size_t count;
    float a;
    float b;
};

// Heads of width head_dim lie head_stride apart, a multiple of 16; what pads them is 0.
struct Heads {
    std::size_t count;
    std::size_t dim;
    std::size_t stride;
};

// Floats of one stored row: keys, then values of all heads, then what makes the number of its cache lines
// odd. Were it even, the same head of many rows would fall into few sets of the first cache.
static inline std::size_t row_floats(const Heads& heads) {
    constexpr std::size_t kCacheLine = 16;
    return (2 * heads.count * heads.stride / kCacheLine | 1) * kCacheLine;
}

// Cut rows of a joint projection into heads: query, and key and value into the node's stored row.
//   qkv      (R, 3 * count * dim) float32: all queries, all keys, all values
//   cos, sin (R,) pointers to (dim / 2,) float32, or null arrays: no rotation. Rotation turns
//            (a[i], a[i + dim / 2]) by the angle i
//   epsilon  of the root-mean-square norm over each query and key head; negative: no norm
//   query    (R, count * stride) float32
//   stored   (R,) pointers to rows of row_floats float32: keys, then values
struct SplitArgs {
    const float* qkv;
    std::size_t R;
    Heads heads;
    const float* const* cos;
    const float* const* sin;
    float epsilon;
    float* query;
    float* const* stored;
};

// Each row attends to the stored rows of its path: softmax(q . k / sqrt(dim)) over the path, times v.
//   query   (R, count * stride) float32
//   store   (R,) pointers to stored rows of the row's tree and layer, row_floats apart
//   path    (R,) pointers to (length[r],) int32, indices of stored rows
//   mixed   (R, count * dim) float32
//   scratch (kAttendedRows * (longest + 16),) float32
struct AttendArgs {
    const float* query;
    std::size_t R;
    Heads heads;
    const float* const* store;
    const std::int32_t* const* path;
    const std::size_t* length;
    float* mixed;
    float* scratch;
};

// What an LSTM keeps of a node in one layer: h, then c, each padded to whole cache lines.
static inline std::size_t padded_state(std::size_t dim) {
    constexpr std::size_t kCacheLine = 16;
    return ceil_divide(dim, kCacheLine) * kCacheLine;
}

// One step of an LSTM for some neighboring elements of R rows. With x = input[r] + recurrent[r], by gates:
//   c = sigmoid(x of f) * (c of above[r]) + sigmoid(x of i) * tanh(x of g)
//   h = sigmoid(x of o) * tanh(c)
// NaN and infinity in x become NaN. The last vector of elements may be written and read beyond `count`.
//   input     (R,) pointers to gate i, then f, g, o, input_stride apart; likewise recurrent
//   above     (R,) pointers to the elements of h, c c_offset after; state likewise, which is written
struct CellArgs {
    std::size_t R;
    std::size_t count;
    const float* const* input;
    std::size_t input_stride;
    const float* const* recurrent;
    std::size_t recurrent_stride;
    const float* const* above;
    float* const* state;
    std::size_t c_offset;
};

struct Kernels {
    void (*norm)(const NormArgs&);
    void (*quantize)(const QuantizeArgs&);
    void (*linear)(const LinearArgs&);
    void (*output)(const OutputArgs&);
    float (*logit)(const LogitArgs&);
    void (*embed)(const EmbedArgs&);
    void (*mix)(const MixArgs&);
    void (*split)(const SplitArgs&);
    void (*attend)(const AttendArgs&);
    void (*cell)(const CellArgs&);
};

namespace scalar {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx2vnni {
extern const Kernels kernels;
}
namespace avx512vnni {
extern const Kernels kernels;
}
namespace avx512vbmi {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}

}  // namespace secondpass
