// What runs a packed model over trees of tokens: the whole forward pass is one call. Knows no architecture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "batch.h"
#include "kernels.h"
#include "pool.h"
#include "process_mutex.h"
#include "tree.h"

namespace secondpass {

// Which nodes a model takes.
struct Limits {
    std::size_t vocab_size;
    std::size_t max_tokens;  // greatest depth
};

// A model and the scratch of its forward passes. Its trees may outlive it.
class Engine {
public:
    virtual ~Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // A tree that is one path, the root first. Throws std::invalid_argument for a path too long or
    // a token out of range.
    std::unique_ptr<Tree> new_tree(const std::vector<std::int32_t>& path) const;

    // A tree of some nodes of another, with what they left behind when they were run (see Tree::copy).
    // It may be kept: it holds hardly more memory than it needs, also when it grows. Throws
    // std::invalid_argument for nodes that do not make a tree, or a tree of another model.
    std::unique_ptr<Tree> fork(const Tree& tree, const std::int32_t* nodes,
                               std::size_t count) const;

    // Appends nodes and computes log P(token | path to parent) of each, in order, tree after tree.
    // Nodes that have children now and were never run are run. Callers wait for each other. Every
    // number is the same whatever else is in the call and however many threads there are.
    //   log_prob (sum of counts,) float32
    // Throws std::invalid_argument for nodes that cannot be appended, std::bad_alloc, and
    // std::runtime_error in a forked child that cannot run it (see Pool and ProcessMutex); the trees
    // are then as they were.
    void extend(const Growth* growths, std::size_t count, float* log_prob);

protected:
    Engine(const Kernels& kernels, std::shared_ptr<Pool> pool, const Limits& limits,
           const StoredSizes& stored);

    // Runs the rows of a batch that was built and answers its questions. One call at a time. Throws
    // std::bad_alloc, before anything is computed.
    virtual void forward(Batch& batch, float* log_prob) = 0;

    const Kernels& kernels_;
    const std::shared_ptr<Pool> pool_;

private:
    void require_token(std::int32_t token) const;
    void require_depth(std::size_t depth) const;
    void require_own(const Tree& tree) const;
    void require_growable(const Growth& growth) const;

    const Limits limits_;
    const StoredSizes stored_;
    const std::shared_ptr<Spares> spares_;
    ProcessMutex mutex_;  // held by the one who extends trees
};

}  // namespace secondpass
