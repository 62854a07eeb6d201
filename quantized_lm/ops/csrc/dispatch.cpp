#include "dispatch.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace secondpass {
namespace {

struct Isa {
    const char* name;
    const Kernels* kernels;
    bool is_usable;
};

// Slowest first.
std::vector<Isa> table() {
    std::vector<Isa> isas{{"scalar", &scalar::kernels, true}};
#if defined(SECONDPASS_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    isas.push_back({"avx2", &avx2::kernels, has_avx2});
    isas.push_back({"avx512", &avx512::kernels, has_avx512});
#endif
    return isas;
}

const Kernels& kernels_of(const std::string& name) {
    for (const Isa& isa : table())
        if (isa.is_usable && name == isa.name) return *isa.kernels;
    throw std::invalid_argument("instruction set " + name + " is not in instruction_sets()");
}

// Rows of x worked on at a time: as many as stay in half of a 1 MiB L2 cache, and enough to pay for
// unpacking the weights once more. A multiple of every kernel's tile height.
std::size_t chunk_rows(const Weight& weight) {
    constexpr std::size_t kBytes = 512 * 1024;
    constexpr std::size_t kStep = 24;
    const std::size_t rows = kBytes / (weight.K * sizeof(float));
    return std::max<std::size_t>(rows / kStep, 4) * kStep;
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Isa& isa : table())
        if (isa.is_usable) names.emplace_back(isa.name);
    return names;
}

void linear(const std::string& isa, const Weight& weight, const float* x, std::size_t M, float* y) {
    const Kernels& kernels = kernels_of(isa);
    const std::size_t chunk = chunk_rows(weight);
    std::vector<float> tile(std::min(chunk, M) * kPanel);
    for (std::size_t m = 0; m < M; m += chunk)
        kernels.linear({weight, x + m * weight.K, std::min(chunk, M - m), y + m * weight.N,
                        tile.data()});
}

void embed(const std::string& isa, const Weight& weight, const std::int64_t* tokens, std::size_t T,
           float* y) {
    kernels_of(isa).embed({weight, tokens, T, y});
}

void gather_log_prob(const std::string& isa, const Weight& weight, const GatherArgs& args) {
    const Kernels& kernels = kernels_of(isa);
    const std::size_t chunk = chunk_rows(weight);
    const auto row_of = [&](std::size_t c) { return static_cast<std::size_t>(args.rows[c]); };
    // Questions in the order in which the kernels reach their answers.
    std::vector<std::size_t> order(args.C);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return std::make_pair(row_of(a) / chunk, args.tokens[a]) <
               std::make_pair(row_of(b) / chunk, args.tokens[b]);
    });
    std::vector<float> tile(std::min(chunk, args.M) * kPanel);
    std::vector<float> maximum(args.M);
    std::vector<double> sum(args.M);
    auto next = order.begin();
    for (std::size_t m = 0; m < args.M; m += chunk) {
        const auto end = std::find_if(
            next, order.end(), [&](std::size_t c) { return row_of(c) >= m + chunk; });
        kernels.log_sum_exp({weight, args.x + m * weight.K, std::min(chunk, args.M - m), m,
                             args.rows, args.tokens, order.data() + (next - order.begin()),
                             static_cast<std::size_t>(end - next), tile.data(), args.y,
                             maximum.data() + m, sum.data() + m});
        next = end;
    }
    for (std::size_t c = 0; c < args.C; ++c)
        args.y[c] = static_cast<float>(static_cast<double>(args.y[c]) -
                                       static_cast<double>(maximum[row_of(c)]) -
                                       std::log(sum[row_of(c)]));
}

}  // namespace secondpass
