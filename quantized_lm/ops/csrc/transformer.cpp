#include "transformer.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace secondpass {
namespace {

// Heads start on cache lines.
constexpr std::size_t kHeadStep = 16;

Heads heads_of(const TransformerPlan& plan) {
    const std::size_t dim = plan.model_dim / plan.num_heads;
    return {plan.num_heads, dim, ceil_divide(dim, kHeadStep) * kHeadStep};
}

// The largest of what `size` says of each weight.
template <typename Size>
std::size_t largest(const TransformerPlan& plan, Size size) {
    std::size_t most = size(plan.embedding.weight);
    for (const BlockPlan& block : plan.blocks)
        for (const ProjectionPlan* projection : {&block.qkv, &block.out, &block.up, &block.down})
            most = std::max<std::size_t>(most, size(projection->weight.weight));
    return most;
}

void require_token(std::int32_t token, std::size_t vocab_size) {
    if (token < 0 || static_cast<std::size_t>(token) >= vocab_size)
        throw std::invalid_argument("a token is " + std::to_string(token) + "; need 0 to " +
                                    std::to_string(vocab_size - 1));
}

void require_depth(std::size_t depth, std::size_t max_tokens) {
    if (depth > max_tokens)
        throw std::invalid_argument("a path has " + std::to_string(depth) +
                                    " tokens; need at most " + std::to_string(max_tokens));
}

}  // namespace

Transformer::Transformer(const Kernels& kernels, std::shared_ptr<Pool> pool, TransformerPlan plan)
    : kernels_(kernels),
      pool_(std::move(pool)),
      plan_(std::move(plan)),
      heads_(heads_of(plan_)),
      spares_(std::make_shared<Spares>()),
      scratch_(pool_->threads()) {}

std::unique_ptr<Tree> Transformer::new_tree(const std::vector<std::int32_t>& path) const {
    require_depth(path.size() - 1, plan_.max_tokens);
    for (const std::int32_t token : path) require_token(token, plan_.embedding.weight.N);
    const StoredSizes sizes{plan_.blocks.size(), row_floats(heads_),
                            padded_columns(plan_.embedding.weight),
                            groups_of(plan_.embedding.weight)};
    auto tree = std::make_unique<Tree>(sizes, spares_);
    for (const std::int32_t token : path)
        tree->append(static_cast<std::int32_t>(tree->size()) - 1, token);
    return tree;
}

void Transformer::extend(const Growth* growths, std::size_t count, float* log_prob) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < count; ++i) {
        require_growable(growths[i]);
        for (std::size_t j = 0; j < i; ++j)
            if (growths[i].tree == growths[j].tree)
                throw std::invalid_argument("a tree is given twice; need different trees");
    }
    Batch batch(growths, count);
    batch.build();
    require_scratch(batch);
    const Forward forward{kernels_, plan_, heads_, *pool_, batch, log_prob};
    pool_->run([&](std::size_t thread) noexcept {
        Worker(forward, scratch_[thread], thread).run();
    });
    batch.commit();
}

void Transformer::require_growable(const Growth& growth) const {
    const Tree& tree = *growth.tree;
    if (!tree.uses(*spares_))
        throw std::invalid_argument("a tree is another model's; need one that this model made");
    std::vector<std::size_t> depth(growth.count);  // of the new nodes
    for (std::size_t i = 0; i < growth.count; ++i) {
        const std::size_t size = tree.size() + i;
        const std::int32_t parent = growth.parents[i];
        if (parent < 0 || static_cast<std::size_t>(parent) >= size)
            throw std::invalid_argument("the parent of node " + std::to_string(size) + " is " +
                                        std::to_string(parent) + "; need 0 to " +
                                        std::to_string(size - 1));
        const std::size_t above = static_cast<std::size_t>(parent);
        depth[i] = 1 + (above < tree.size() ? static_cast<std::size_t>(tree.node(above).depth)
                                            : depth[above - tree.size()]);
        require_depth(depth[i], plan_.max_tokens);
        require_token(growth.tokens[i], plan_.embedding.weight.N);
    }
}

void Transformer::require_scratch(const Batch& batch) {
    const std::size_t share = ceil_divide(batch.rows.size(), pool_->threads());
    const std::size_t rows = std::min(share, kChunkRows);
    const bool has_mix = std::any_of(plan_.blocks.begin(), plan_.blocks.end(), mixes);
    for (WorkerScratch& scratch : scratch_) {
        scratch.stream.require(rows * plan_.model_dim);
        scratch.query.require(rows * heads_.count * heads_.stride);
        if (has_mix) scratch.embedded.require(rows * plan_.model_dim);
        scratch.wide.require(kRowBlock * std::max(3 * plan_.model_dim, plan_.ffn_dim));
        scratch.mixed.require(rows * plan_.model_dim);
        scratch.codes.require(kRowBlock * largest(plan_, padded_columns));
        scratch.step.require(kRowBlock);
        scratch.start.require(kRowBlock * largest(plan_, groups_of));
        scratch.line.require(largest(plan_, [](const Weight& w) { return w.K; }) + kPanel);
        scratch.tile.require(kRowBlock * kPanel);
        scratch.attention.require(kAttendedRows * (batch.longest_path + kHeadStep));
        scratch.tables.require(largest(plan_, table_bytes));
    }
}

}  // namespace secondpass
