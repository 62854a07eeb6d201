#include "lstm.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace secondpass {
namespace {

std::vector<LstmLayer> layers_of(const LstmPlan& plan) {
    std::vector<LstmLayer> layers;
    for (const LstmLayerPlan& layer : plan.layers)
        layers.push_back({Gates(layer.input), Gates(layer.recurrent)});
    return layers;
}

}  // namespace

Lstm::Lstm(const Kernels& kernels, std::shared_ptr<Pool> pool, LstmPlan plan)
    : Engine(kernels, std::move(pool), {plan.embedding.weight.N, plan.max_tokens},
             stored_sizes(plan.embedding.weight, plan.layers.size(),
                          2 * padded_state(plan.model_dim))),
      plan_(std::move(plan)),
      layers_(layers_of(plan_)),
      scratch_(pool_->threads()) {
    const std::size_t floats = 2 * padded_state(plan_.model_dim);
    shared_.above_roots.require(floats);
    std::memset(shared_.above_roots.data(), 0, floats * sizeof(float));
}

void Lstm::forward(Batch& batch, float* log_prob) {
    const Levels levels(batch.rows);
    require_scratch(levels);
    const OutputLayer output(kernels_, plan_.embedding.weight, batch, log_prob);
    const LstmPass pass{kernels_, plan_, layers_, *pool_, batch.rows, levels, shared_, output};
    pool_->run(
        [&](std::size_t thread) noexcept { LstmWorker(pass, scratch_[thread], thread).run(); });
}

void Lstm::require_scratch(const Levels& levels) {
    std::size_t rows = 1;
    for (const Levels::Chunk& chunk : levels.chunks()) rows = std::max(rows, chunk.rows);
    shared_.input.require(rows * kGates * padded_rows(plan_.layers[0].input[0].weight.weight));
    for (const LstmLayer& layer : layers_) {
        layer.input.require(shared_.x, rows);
        layer.recurrent.require(shared_.h, rows);
    }
    for (LstmScratch& scratch : scratch_) {
        scratch.embedded.require(kRowBlock * plan_.model_dim);
        scratch.recurrent.require(kRowBlock * kGates * kPanel);
        scratch.block.require(plan_.embedding.weight);
        for (const LstmLayer& layer : layers_) {
            layer.input.require(scratch.block);
            layer.recurrent.require(scratch.block);
        }
    }
}

}  // namespace secondpass
