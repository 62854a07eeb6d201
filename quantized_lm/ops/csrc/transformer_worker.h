// One thread's share of a Transformer's forward pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "batch.h"
#include "buffer.h"
#include "kernels.h"
#include "output_layer.h"
#include "paths.h"
#include "plan.h"
#include "pool.h"
#include "row_blocks.h"
#include "scratch.h"

namespace secondpass {

// What a thread works with, for a block of rows.
struct TransformerScratch {
    Buffer<float> stream;    // (rows, model_dim): the residual stream
    Buffer<float> embedded;  // (rows, model_dim): what layers mix back in; empty if none does
    Buffer<float> query;     // (rows, count * stride)
    Buffer<float> mixed;     // (rows, model_dim): what attention read
    Buffer<float> wide;      // (rows, widest): qkv, and what lies between up and down
    Buffer<float> attention;
    BlockScratch block;
};

// What all threads share.
struct TransformerPass {
    const Kernels& kernels;
    const TransformerPlan& plan;
    Heads heads;
    Pool& pool;
    const std::vector<Row>& rows;
    const Paths& paths;
    const OutputLayer& output;
    RowBlocks& blocks;
};

// Whether a block's mix changes the stream.
inline bool mixes(const BlockPlan& block) {
    return block.mix_stream != 1.0f || block.mix_embedding != 0.0f;
}

class TransformerWorker {
public:
    TransformerWorker(const TransformerPass& pass, const TransformerScratch& scratch,
                      std::size_t thread)
        : pass_(pass), plan_(pass.plan), scratch_(scratch), thread_(thread) {}

    // Once on each thread of the pool.
    void run() const noexcept;

private:
    void run(const RowBlock& block) const;

    void embed(const RowBlock& block) const;
    void project(const RowBlock& block, std::size_t layer) const;
    bool is_kept_as_projected(const RowBlock& block) const;
    void project_in_place(const RowBlock& block, std::size_t layer, const Rows& rows) const;
    void prefetch_stored(const RowBlock& block, std::size_t layer) const;
    void split(const RowBlock& block, std::size_t layer, const float* qkv) const;
    void attend(const RowBlock& block, std::size_t layer) const;
    void feed_forward(const RowBlock& block, std::size_t layer) const;
    void answer(const RowBlock& block) const;

    Rows quantize(const Weight& weight, const float* x, std::size_t count, const Norm* norm) const;
    void multiply(const ProjectionPlan& plan, const Rows& rows, std::size_t count,
                  Activation activation, bool adds, float* y) const;

    float* stream() const noexcept { return scratch_.stream.data(); }
    float* embedded() const noexcept { return scratch_.embedded.data(); }
    float* query() const noexcept { return scratch_.query.data(); }
    float* mixed() const noexcept { return scratch_.mixed.data(); }

    const TransformerPass& pass_;
    const TransformerPlan& plan_;
    const TransformerScratch& scratch_;
    const std::size_t thread_;
};

}  // namespace secondpass
