#include "transformer_worker.h"

#include <cstring>

namespace secondpass {

void TransformerWorker::run() const noexcept {
    pass_.blocks.take_all([this](const RowBlock& block) { run(block); });
    pass_.output.answer_late(thread_, pass_.pool.threads());
}

// All that a row needs but keys and values is its own, so a block goes from one attention to the next in
// one go, and through all layers before the thread takes another: keys and values are then still in the
// second cache when attention reads them.
void TransformerWorker::run(const RowBlock& block) const {
    embed(block);
    const std::size_t layers = plan_.blocks.size();
    for (std::size_t layer = 0; layer < layers; ++layer) {
        project(block, layer);
        pass_.blocks.store_layer(block);
        pass_.blocks.wait_for_ancestors(block, layer + 1);
        attend(block, layer);
        feed_forward(block, layer);
    }
    answer(block);
}

void TransformerWorker::embed(const RowBlock& block) const {
    const std::size_t dim = plan_.model_dim;
    const Row* rows = pass_.rows.data() + block.first;
    std::int64_t tokens[kRowBlock];
    for (std::size_t r = 0; r < block.count; ++r) tokens[r] = rows[r].token;
    pass_.kernels.embed({plan_.embedding.weight, tokens, block.count, stream()});
    if (plan_.normalizes_embedding) {
        const Norm norm{nullptr, nullptr, plan_.norm_epsilon, false};
        pass_.kernels.norm({stream(), stream(), block.count, dim, norm, scratch_.block.line()});
    }
    if (const float* positions = plan_.positions.data())
        for (std::size_t r = 0; r < block.count; ++r) {
            const std::size_t depth = static_cast<std::size_t>(rows[r].depth);
            pass_.kernels.mix({stream() + r * dim, positions + depth * dim, dim, 1.0f, 1.0f});
        }
    if (embedded() != nullptr)
        std::memcpy(embedded(), stream(), block.count * dim * sizeof(float));
}

// From the stream to queries, and to keys and values, which become part of the trees.
void TransformerWorker::project(const RowBlock& block, std::size_t layer) const {
    const BlockPlan& plan = plan_.blocks[layer];
    prefetch_stored(block, layer);
    if (mixes(plan))
        pass_.kernels.mix({stream(), embedded(), block.count * plan_.model_dim, plan.mix_stream,
                           plan.mix_embedding});
    const Norm norm = plan.attention_norm.norm();
    const Rows rows = quantize(plan.qkv.weight.weight, stream(), block.count, &norm);
    if (is_kept_as_projected(block)) return project_in_place(block, layer, rows);
    float* qkv = scratch_.wide.data();
    multiply(plan.qkv, rows, block.count, Activation::kNone, false, qkv);
    split(block, layer, qkv);
}

// Whether the projection gives queries, keys and values as they are kept: neither turned, normalized nor
// padded, each from a panel of its own on, and in rows at equal distances, which those of one tree are.
bool TransformerWorker::is_kept_as_projected(const RowBlock& block) const {
    const Row* rows = pass_.rows.data() + block.first;
    const bool changes = plan_.cos.data() != nullptr || plan_.normalizes_qk;
    return !changes && pass_.heads.dim == pass_.heads.stride && plan_.model_dim % kPanel == 0 &&
           rows[0].tree == rows[block.count - 1].tree;
}

// What multiplying and then `split` do, without copies, which took 3 % of the time.
void TransformerWorker::project_in_place(const RowBlock& block, std::size_t layer,
                                         const Rows& rows) const {
    const ProjectionPlan& plan = plan_.blocks[layer].qkv;
    const Row& first = pass_.rows[block.first];
    const std::size_t dim = plan_.model_dim;
    const auto multiply = [&](std::size_t from, std::size_t count, float* y, std::size_t y_stride) {
        const float* bias = plan.bias.data() == nullptr ? nullptr : plan.bias.data() + from;
        pass_.kernels.linear({some_rows(plan.weight.weight, from, count), rows, block.count, bias,
                              Activation::kNone, false, y, y_stride, scratch_.block.tables()});
    };
    multiply(0, dim, query(), dim);
    multiply(dim, 2 * dim, first.tree->stored(layer, first.slot), row_floats(pass_.heads));
}

// Asks for the rows that keys and values will be written to. They lie in memory that no cache holds, and
// stores wait for it one after another: without this a list took 3 to 10 % longer.
void TransformerWorker::prefetch_stored(const RowBlock& block, std::size_t layer) const {
    for (std::size_t r = 0; r < block.count; ++r) {
        const Row& row = pass_.rows[block.first + r];
        prefetch<1>(row.tree->stored(layer, row.slot), row_floats(pass_.heads));
    }
}

void TransformerWorker::split(const RowBlock& block, std::size_t layer, const float* qkv) const {
    const bool turns = plan_.cos.data() != nullptr;
    const std::size_t half = turns ? pass_.heads.dim / 2 : 0;
    const float* cos[kRowBlock];
    const float* sin[kRowBlock];
    float* stored[kRowBlock];
    for (std::size_t r = 0; r < block.count; ++r) {
        const Row& row = pass_.rows[block.first + r];
        const std::size_t depth = static_cast<std::size_t>(row.depth);
        cos[r] = plan_.cos.data() + depth * half;
        sin[r] = plan_.sin.data() + depth * half;
        stored[r] = row.tree->stored(layer, row.slot);
    }
    const float epsilon = plan_.normalizes_qk ? plan_.norm_epsilon : -1.0f;
    pass_.kernels.split({qkv, block.count, pass_.heads, turns ? cos : nullptr,
                         turns ? sin : nullptr, epsilon, query(), stored});
}

void TransformerWorker::attend(const RowBlock& block, std::size_t layer) const {
    const float* store[kRowBlock];
    const std::int32_t* path[kRowBlock];
    std::size_t length[kRowBlock];
    for (std::size_t r = 0; r < block.count; ++r) {
        const Row& row = pass_.rows[block.first + r];
        store[r] = row.tree->layer(layer);
        path[r] = pass_.paths.of(block.first + r);
        length[r] = path_length(row);
    }
    pass_.kernels.attend({query(), block.count, pass_.heads, store, path, length, mixed(),
                          scratch_.attention.data()});
}

void TransformerWorker::feed_forward(const RowBlock& block, std::size_t layer) const {
    const BlockPlan& plan = plan_.blocks[layer];
    Rows rows = quantize(plan.out.weight.weight, mixed(), block.count, nullptr);
    multiply(plan.out, rows, block.count, Activation::kNone, true, stream());
    const Norm norm = plan.ffn_norm.norm();
    float* inner = scratch_.wide.data();
    rows = quantize(plan.up.weight.weight, stream(), block.count, &norm);
    multiply(plan.up, rows, block.count, plan_.activation, false, inner);
    rows = quantize(plan.down.weight.weight, inner, block.count, nullptr);
    multiply(plan.down, rows, block.count, Activation::kNone, true, stream());
}

void TransformerWorker::answer(const RowBlock& block) const {
    const Weight& weight = plan_.embedding.weight;
    const Norm norm = plan_.final_norm.norm();
    const Rows rows = quantize(weight, stream(), block.count, &norm);
    pass_.output.answer(block.first, block.count, rows, scratch_.block.output());
}

Rows TransformerWorker::quantize(const Weight& weight, const float* x, std::size_t count,
                      const Norm* norm) const {
    const Rows rows = scratch_.block.rows();
    pass_.kernels.quantize({weight, x, count, norm, rows, scratch_.block.line()});
    return rows;
}

void TransformerWorker::multiply(const ProjectionPlan& plan, const Rows& rows, std::size_t count,
                      Activation activation, bool adds, float* y) const {
    const Weight& weight = plan.weight.weight;
    pass_.kernels.linear({weight, rows, count, plan.bias.data(), activation, adds, y, weight.N,
                          scratch_.block.tables()});
}

}  // namespace secondpass
