// Runs a packed Transformer over trees of tokens: the whole forward pass is one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "batch.h"
#include "buffer.h"
#include "kernels.h"
#include "plan.h"
#include "pool.h"
#include "tree.h"
#include "worker.h"

namespace secondpass {

// A model and the scratch of its forward passes. Its trees may outlive it.
class Transformer {
public:
    Transformer(const Kernels& kernels, std::shared_ptr<Pool> pool, TransformerPlan plan);

    // A tree that is one path, the root first. Throws std::invalid_argument for a path too long or
    // a token out of range.
    std::unique_ptr<Tree> new_tree(const std::vector<std::int32_t>& path) const;

    // Appends nodes and computes log P(token | path to parent) of each, in order, tree after tree.
    // Nodes that have children now and were never run are run. Callers wait for each other. Every
    // number is the same whatever else is in the call and however many threads there are.
    //   log_prob (sum of counts,) float32
    // Throws std::invalid_argument for nodes that cannot be appended, and std::bad_alloc; the trees
    // are then as they were.
    void extend(const Growth* growths, std::size_t count, float* log_prob);

private:
    void require_growable(const Growth& growth) const;
    void require_scratch(const Batch& batch);

    const Kernels& kernels_;
    const std::shared_ptr<Pool> pool_;
    const TransformerPlan plan_;
    const Heads heads_;
    const std::shared_ptr<Spares> spares_;

    std::mutex mutex_;  // guards what follows
    std::vector<WorkerScratch> scratch_;  // one per thread
};

}  // namespace secondpass
