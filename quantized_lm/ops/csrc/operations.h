// The operations of one packed weight, for those who run a model step by step.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "pool.h"

namespace secondpass {

// y[m, n] = sum over k of weight[n, k] * x[m, k], by way of int8 codes of x
//   x (M, K) float32
//   y (M, N) float32
void linear(const Kernels& kernels, Pool& pool, const Weight& weight, const float* x,
            std::size_t M, float* y);

// y[t, k] = weight[tokens[t], k]
//   tokens (T,)   int64, in [0, N)
//   y      (T, K) float32
void embed(const Kernels& kernels, Pool& pool, const Weight& weight, const std::int64_t* tokens,
           std::size_t T, float* y);

// y[c] = log softmax(weight . x[rows[c]])[tokens[c]]
//   x      (M, K) float32
//   rows   (C,)   int64, in [0, M)
//   tokens (C,)   int64, in [0, N)
//   y      (C,)   float32
struct GatherArgs {
    const float* x;
    std::size_t M;
    const std::int64_t* rows;
    const std::int64_t* tokens;
    std::size_t C;
    float* y;
};

void gather_log_prob(const Kernels& kernels, Pool& pool, const Weight& weight,
                     const GatherArgs& args);

// Seconds that `repeats` products of the same x take on this thread, quantization of x included.
double time_linear(const Kernels& kernels, const Weight& weight, const float* x, std::size_t M,
                   std::size_t repeats);

}  // namespace secondpass
