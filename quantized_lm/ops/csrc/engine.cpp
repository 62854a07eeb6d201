#include "engine.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace secondpass {

Engine::Engine(const Kernels& kernels, std::shared_ptr<Pool> pool, const Limits& limits,
               const StoredSizes& stored)
    : kernels_(kernels),
      pool_(std::move(pool)),
      limits_(limits),
      stored_(stored),
      spares_(std::make_shared<Spares>()) {}

std::unique_ptr<Tree> Engine::new_tree(const std::vector<std::int32_t>& path) const {
    require_depth(path.size() - 1);
    for (const std::int32_t token : path) require_token(token);
    auto tree = std::make_unique<Tree>(stored_, spares_, Life::kShort);
    for (const std::int32_t token : path)
        tree->append(static_cast<std::int32_t>(tree->size()) - 1, token);
    return tree;
}

std::unique_ptr<Tree> Engine::fork(const Tree& tree, const std::int32_t* nodes,
                                   std::size_t count) const {
    require_own(tree);
    auto part = std::make_unique<Tree>(stored_, spares_, Life::kLong);
    part->copy(tree, nodes, count);
    return part;
}

void Engine::extend(const Growth* growths, std::size_t count, float* log_prob) {
    const std::lock_guard<ProcessMutex> lock(mutex_);
    for (std::size_t i = 0; i < count; ++i) {
        require_growable(growths[i]);
        for (std::size_t j = 0; j < i; ++j)
            if (growths[i].tree == growths[j].tree)
                throw std::invalid_argument("a tree is given twice; need different trees");
    }
    Batch batch(growths, count);
    batch.build();
    forward(batch, log_prob);
    batch.commit();
}

void Engine::require_token(std::int32_t token) const {
    if (token < 0 || static_cast<std::size_t>(token) >= limits_.vocab_size)
        throw std::invalid_argument("a token is " + std::to_string(token) + "; need 0 to " +
                                    std::to_string(limits_.vocab_size - 1));
}

void Engine::require_depth(std::size_t depth) const {
    if (depth > limits_.max_tokens)
        throw std::invalid_argument("a path has " + std::to_string(depth) +
                                    " tokens; need at most " + std::to_string(limits_.max_tokens));
}

void Engine::require_own(const Tree& tree) const {
    if (!tree.uses(*spares_))
        throw std::invalid_argument("a tree is another model's; need one that this model made");
}

void Engine::require_growable(const Growth& growth) const {
    const Tree& tree = *growth.tree;
    require_own(tree);
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
        require_depth(depth[i]);
        require_token(growth.tokens[i]);
    }
}

}  // namespace secondpass
