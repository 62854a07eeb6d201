#include "transformer.h"

#include <algorithm>
#include <utility>

namespace secondpass {
namespace {

// Heads start on cache lines.
constexpr std::size_t kHeadStep = 16;

Heads heads_of(const TransformerPlan& plan) {
    const std::size_t dim = plan.model_dim / plan.num_heads;
    return {plan.num_heads, dim, ceil_divide(dim, kHeadStep) * kHeadStep};
}

}  // namespace

Transformer::Transformer(const Kernels& kernels, std::shared_ptr<Pool> pool, TransformerPlan plan)
    : Engine(kernels, std::move(pool), {plan.embedding.weight.N, plan.max_tokens},
             stored_sizes(plan.embedding.weight, plan.blocks.size(), row_floats(heads_of(plan)))),
      plan_(std::move(plan)),
      heads_(heads_of(plan_)),
      scratch_(pool_->threads()) {}

void Transformer::forward(Batch& batch, float* log_prob) {
    const Paths paths(batch.rows);
    require_scratch(batch, paths);
    const OutputLayer output(kernels_, plan_.embedding.weight, batch, log_prob);
    RowBlocks blocks(batch.rows, *pool_);
    const TransformerPass pass{kernels_, plan_, heads_, *pool_, batch.rows, paths, output, blocks};
    pool_->run([&](std::size_t thread) noexcept {
        TransformerWorker(pass, scratch_[thread], thread).run();
    });
}

void Transformer::require_scratch(const Batch& batch, const Paths& paths) {
    const std::size_t rows = std::min(batch.rows.size(), kRowBlock);
    const bool has_mix = std::any_of(plan_.blocks.begin(), plan_.blocks.end(), mixes);
    for (TransformerScratch& scratch : scratch_) {
        scratch.stream.require(rows * plan_.model_dim);
        scratch.query.require(rows * heads_.count * heads_.stride);
        if (has_mix) scratch.embedded.require(rows * plan_.model_dim);
        scratch.wide.require(kRowBlock * std::max(3 * plan_.model_dim, plan_.ffn_dim));
        scratch.mixed.require(rows * plan_.model_dim);
        scratch.attention.require(kAttendedRows * (paths.longest() + kHeadStep));
        scratch.block.require(plan_.embedding.weight);
        for (const BlockPlan& block : plan_.blocks)
            for (const ProjectionPlan* projection : {&block.qkv, &block.out, &block.up, &block.down})
                scratch.block.require(projection->weight.weight);
    }
}

}  // namespace secondpass
