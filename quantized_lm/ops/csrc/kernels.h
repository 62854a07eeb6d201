// What every instruction set provides, and the arguments it is given.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secondpass {

// Weight rows that lie side by side in memory: the width of the tile every kernel computes.
constexpr std::size_t kPanel = 64;
constexpr std::size_t kMaxLevels = 16;

// weight[n, k] = level(code[n, k]) * scale[n, k / group_size]
//   words  (P, W, 64) uint32   P = ceil(N / 64) panels, W = ceil(K * bits / 32); word w of 64 rows
//                              side by side, 32 / bits codes in each, lowest bits first
//   scale  (P, G, 64) float32  G = ceil(K / group_size)
//   levels (16,)      float32  at 8 bits unused: there the code is the level itself, an int8
struct Weight {
    const std::uint32_t* words;
    const float* scale;
    const float* levels;
    std::size_t N;
    std::size_t K;
    std::size_t group_size;
    std::size_t bits;  // 1, 2, 4 or 8

    std::size_t panels() const { return (N + kPanel - 1) / kPanel; }
    std::size_t words_per_row() const { return (K * bits + 31) / 32; }
    std::size_t groups() const { return (K + group_size - 1) / group_size; }
};

// y[m, n] = sum over k, ascending, of weight[n, k] * x[m, k]
//   x    (M, K)  float32
//   y    (M, N)  float32
//   tile (M, 64) float32, scratch for a last panel narrower than 64
struct LinearArgs {
    Weight weight;
    const float* x;
    std::size_t M;
    float* y;
    float* tile;
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

// logit[c] = dot(weight[tokens[c]], x[rows[c] - first_row]) for each c in by_token, and for each
// row m of x, over all n: maximum[m] = max logit[m, n], sum[m] = sum exp(logit[m, n] - maximum[m])
//   x        (M, K)  float32
//   rows     (all,)  int64; rows[by_token] in [first_row, first_row + M)
//   tokens   (all,)  int64; tokens[by_token] in [0, N) and ascending
//   by_token (C,)    uint64
//   tile     (M, 64) float32 scratch
//   logit    (all,)  float32
//   maximum  (M,)    float32
//   sum      (M,)    float64
struct LogSumExpArgs {
    Weight weight;
    const float* x;
    std::size_t M;
    std::size_t first_row;
    const std::int64_t* rows;
    const std::int64_t* tokens;
    const std::size_t* by_token;
    std::size_t C;
    float* tile;
    float* logit;
    float* maximum;
    double* sum;
};

struct Kernels {
    void (*linear)(const LinearArgs&);
    void (*embed)(const EmbedArgs&);
    void (*log_sum_exp)(const LogSumExpArgs&);
};

namespace scalar {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace secondpass
