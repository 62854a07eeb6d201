#include "operations.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "buffer.h"
#include "questions.h"
#include "scratch.h"

namespace secondpass {
namespace {

std::vector<BlockScratch> scratch_of(const Pool& pool, const Weight& weight) {
    std::vector<BlockScratch> scratch(pool.threads());
    for (BlockScratch& own : scratch) own.require(weight);
    return scratch;
}

void multiply(const Kernels& kernels, const Weight& weight, const float* x, std::size_t R,
              float* y, const BlockScratch& scratch) {
    kernels.quantize({weight, x, R, nullptr, scratch.rows(), scratch.line()});
    kernels.linear({weight, scratch.rows(), R, nullptr, Activation::kNone, false, y, weight.N,
                    scratch.tables()});
}

// Calls work(first, count) for each block of rows [begin, end).
template <typename Work>
void for_each_block(std::size_t begin, std::size_t end, Work work) {
    for (std::size_t first = begin; first < end; first += kRowBlock)
        work(first, std::min(kRowBlock, end - first));
}

}  // namespace

void linear(const Kernels& kernels, Pool& pool, const Weight& weight, const float* x,
            std::size_t M, float* y) {
    const std::vector<BlockScratch> scratch = scratch_of(pool, weight);
    pool.run([&](std::size_t thread) noexcept {
        const auto [begin, end] = share(M, thread, pool.threads());
        for_each_block(begin, end, [&](std::size_t first, std::size_t count) {
            multiply(kernels, weight, x + first * weight.K, count, y + first * weight.N,
                     scratch[thread]);
        });
    });
}

void embed(const Kernels& kernels, Pool& pool, const Weight& weight, const std::int64_t* tokens,
           std::size_t T, float* y) {
    pool.run([&](std::size_t thread) noexcept {
        const auto [begin, end] = share(T, thread, pool.threads());
        kernels.embed({weight, tokens + begin, end - begin, y + begin * weight.K});
    });
}

void gather_log_prob(const Kernels& kernels, Pool& pool, const Weight& weight,
                     const GatherArgs& args) {
    Questions questions;
    for (std::size_t c = 0; c < args.C; ++c)
        questions.add(args.tokens[c], static_cast<std::size_t>(args.rows[c]), c);
    questions.sort_by_row(args.M);
    const std::vector<BlockScratch> scratch = scratch_of(pool, weight);
    pool.run([&](std::size_t thread) noexcept {
        const BlockScratch& own = scratch[thread];
        const auto [begin, end] = share(args.M, thread, pool.threads());
        for_each_block(begin, end, [&](std::size_t first, std::size_t count) {
            float log_sum[kRowBlock];
            kernels.quantize({weight, args.x + first * weight.K, count, nullptr, own.rows(),
                              own.line()});
            questions.answer(kernels, weight, own.rows(), first, count,
                             own.output(), args.y, log_sum);
        });
    });
}

double time_linear(const Kernels& kernels, const Weight& weight, const float* x, std::size_t M,
                   std::size_t repeats) {
    BlockScratch scratch;
    scratch.require(weight);
    Buffer<float> y;
    y.require(M * weight.N);
    const auto run = [&] {
        for_each_block(0, M, [&](std::size_t first, std::size_t count) {
            multiply(kernels, weight, x + first * weight.K, count, y.data() + first * weight.N,
                     scratch);
        });
    };
    run();  // brings memory in
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < repeats; ++i) run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace secondpass
