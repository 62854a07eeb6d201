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
#include "scratch.h"

namespace secondpass {

// Rows of a thread that go through all layers before it takes more: one block, so that keys and values are
// still in the second cache when attention reads them. It is a multiple of kRowBlock.
constexpr std::size_t kChunkRows = kRowBlock;

// What a thread works with: first for a chunk of its rows, then for one block of them.
struct TransformerScratch {
    Buffer<float> stream;    // (chunk, model_dim): the residual stream
    Buffer<float> embedded;  // (chunk, model_dim): what blocks mix back in; empty if none does
    Buffer<float> query;     // (chunk, count * stride)
    Buffer<float> mixed;     // (chunk, model_dim): what attention read
    Buffer<float> wide;      // (block, widest): qkv, and what lies between up and down
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
    // Rows [first, first + count) of the batch; `place` is where they stand in the thread's chunk.
    struct Block {
        std::size_t first;
        std::size_t count;
        std::size_t place;
    };

    // The thread's blocks of `count` rows from `first` on that all threads share.
    template <typename Work>
    void for_each_block(std::size_t first, std::size_t count, Work work) const {
        const auto [begin, end] = share(count, thread_, pass_.pool.threads());
        for (std::size_t place = 0; place < end - begin; place += kRowBlock)
            work(Block{first + begin + place, std::min(kRowBlock, end - begin - place), place});
    }

    void run_chunk(std::size_t first, std::size_t count) const;

    void embed(Block block) const;
    void project(Block block, std::size_t layer) const;
    bool is_kept_as_projected(Block block) const;
    void project_in_place(Block block, std::size_t layer, const Rows& rows) const;
    void prefetch_stored(Block block, std::size_t layer) const;
    void split(Block block, std::size_t layer, const float* qkv) const;
    void attend(std::size_t first, std::size_t count, std::size_t layer) const;
    void feed_forward(Block block, std::size_t layer) const;
    void answer(Block block) const;

    Rows quantize(const Weight& weight, const float* x, std::size_t count, const Norm* norm) const;
    void multiply(const ProjectionPlan& plan, const Rows& rows, std::size_t count,
                  Activation activation, bool adds, float* y) const;

    float* stream(Block block) const {
        return scratch_.stream.data() + block.place * plan_.model_dim;
    }
    float* embedded(Block block) const {
        return scratch_.embedded.data() + block.place * plan_.model_dim;
    }
    float* mixed(Block block) const {
        return scratch_.mixed.data() + block.place * plan_.model_dim;
    }
    float* query(Block block) const {
        return scratch_.query.data() + block.place * pass_.heads.count * pass_.heads.stride;
    }

    const TransformerPass& pass_;
    const TransformerPlan& plan_;
    const TransformerScratch& scratch_;
    const std::size_t thread_;
};

}  // namespace secondpass
