// Chooses the kernels of one instruction set and gives them scratch memory. No Python here.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace secondpass {

// Names of what this build contains and this CPU can run, slowest first; "scalar" always leads.
std::vector<std::string> instruction_sets();

// y[m, n] = sum over k of weight[n, k] * x[m, k]
//   x (M, K) float32
//   y (M, N) float32
// Throws std::invalid_argument for an instruction set not in instruction_sets().
void linear(const std::string& isa, const Weight& weight, const float* x, std::size_t M, float* y);

// y[t, k] = weight[tokens[t], k]
//   tokens (T,)   int64, in [0, N)
//   y      (T, K) float32
// Throws as linear does.
void embed(const std::string& isa, const Weight& weight, const std::int64_t* tokens, std::size_t T,
           float* y);

// y[c] = log softmax(weight . x[rows[c]])[tokens[c]]
//   x      (M, K) float32, finite
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

// Throws as linear does.
void gather_log_prob(const std::string& isa, const Weight& weight, const GatherArgs& args);

}  // namespace secondpass
