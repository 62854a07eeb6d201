#include "lstm_worker.h"

#include <algorithm>

namespace secondpass {

void LstmWorker::run() const noexcept {
    for (const Chunk& chunk : pass_.levels.chunks())
        for (std::size_t layer = 0; layer < pass_.layers.size(); ++layer) run_layer(chunk, layer);
    answer();
    pass_.output.answer_late(thread_, pass_.pool.threads());
}

// Products of a layer's input are made for all levels at once; only the recurrent ones have to go level by
// level. Threads share products by columns where they can, rounding by rows, hence the barriers.
void LstmWorker::run_layer(const Chunk& chunk, std::size_t layer) const {
    layer == 0 ? round_tokens(chunk) : round_inputs(chunk, layer);
    pass_.pool.barrier();
    multiply_inputs(chunk, layer);
    for (std::size_t i = 0; i < chunk.steps; ++i) {
        const Levels::Step& step = pass_.levels.step(chunk.first_step + i);
        round_parents(step, layer);
        pass_.pool.barrier();
        run_step(chunk, step, layer);
        pass_.pool.barrier();
    }
}

// Rows with the same token have the same input in the first layer.
void LstmWorker::round_tokens(const Chunk& chunk) const {
    const std::size_t dim = pass_.plan.model_dim;
    const std::int64_t* tokens = pass_.levels.tokens() + chunk.first_token;
    for_each_block(chunk.tokens, [&](std::size_t first, std::size_t count) {
        float* embedded = scratch_.embedded.data();
        pass_.kernels.embed({pass_.plan.embedding.weight, tokens + first, count, embedded});
        const float* x[kRowBlock];
        for (std::size_t r = 0; r < count; ++r) x[r] = embedded + r * dim;
        pass_.layers[0].input.round(pass_.kernels, x, count, pass_.shared.x, first,
                                    scratch_.block);
    });
}

void LstmWorker::round_inputs(const Chunk& chunk, std::size_t layer) const {
    for_each_block(chunk.rows, [&](std::size_t first, std::size_t count) {
        const float* x[kRowBlock];
        for (std::size_t r = 0; r < count; ++r) {
            const Row& row = pass_.levels.row(chunk.first_row + first + r);
            x[r] = row.tree->stored(layer - 1, row.slot);
        }
        pass_.layers[layer].input.round(pass_.kernels, x, count, pass_.shared.x, first,
                                        scratch_.block);
    });
}

void LstmWorker::multiply_inputs(const Chunk& chunk, std::size_t layer) const {
    const Gates& gates = pass_.layers[layer].input;
    for_each_piece(gates, layer == 0 ? chunk.tokens : chunk.rows, [&](const Piece& piece) {
        const GateSums sums{input_of(piece.first_row) + piece.first_panel * kPanel,
                            kGates * padded_dim(), padded_dim()};
        gates.multiply(pass_.kernels, pass_.shared.x, piece, sums, scratch_.block);
    });
}

void LstmWorker::round_parents(const Levels::Step& step, std::size_t layer) const {
    for_each_block(step.count, [&](std::size_t first, std::size_t count) {
        const float* h[kRowBlock];
        for (std::size_t r = 0; r < count; ++r)
            h[r] = state_of(pass_.levels.parent(step.first + first + r), layer);
        pass_.layers[layer].recurrent.round(pass_.kernels, h, count, pass_.shared.h, first,
                                            scratch_.block);
    });
}

// Siblings share their parent's recurrent product.
void LstmWorker::run_step(const Chunk& chunk, const Levels::Step& step, std::size_t layer) const {
    const Gates& gates = pass_.layers[layer].recurrent;
    for_each_piece(gates, step.count, [&](Piece piece) {
        const std::size_t end = piece.first_panel + piece.panels;
        const std::size_t most = kRowBlock / piece.rows;  // what the scratch holds
        for (; piece.first_panel < end; piece.first_panel += piece.panels) {
            piece.panels = std::min(most, end - piece.first_panel);
            const std::size_t columns = piece.panels * kPanel;
            gates.multiply(pass_.kernels, pass_.shared.h, piece,
                           {scratch_.recurrent.data(), kGates * columns, columns},
                           scratch_.block);
            Piece parents = piece;
            parents.first_row += step.first;
            update(chunk, parents, layer);
        }
    });
}

// New states of the parents' children, in the columns of the piece.
void LstmWorker::update(const Chunk& chunk, const Piece& parents, std::size_t layer) const {
    const Levels& levels = pass_.levels;
    const std::size_t column = parents.first_panel * kPanel;
    const std::size_t columns = parents.panels * kPanel;
    const float* input[kRowBlock];
    const float* recurrent[kRowBlock];
    const float* above[kRowBlock];
    float* state[kRowBlock];
    std::size_t parent = parents.first_row;
    const std::size_t end = levels.first_child(parent + parents.rows);
    for (std::size_t first = levels.first_child(parent); first < end; first += kRowBlock) {
        const std::size_t count = std::min(kRowBlock, end - first);
        for (std::size_t r = 0; r < count; ++r) {
            const std::size_t child = first + r;
            while (levels.first_child(parent + 1) <= child) ++parent;
            const Row& row = levels.row(child);
            input[r] = column + input_of(layer == 0 ? levels.token_of(child) : child - chunk.first_row);
            recurrent[r] = scratch_.recurrent.data() + (parent - parents.first_row) * kGates * columns;
            above[r] = column + state_of(levels.parent(parent), layer);
            state[r] = column + row.tree->stored(layer, row.slot);
        }
        pass_.kernels.cell({count, std::min(columns, pass_.plan.model_dim - column), input,
                            padded_dim(), recurrent, columns, above, state,
                            padded_state(pass_.plan.model_dim)});
    }
}

void LstmWorker::answer() const {
    const Weight& weight = pass_.plan.embedding.weight;
    for_each_block(pass_.rows.size(), [&](std::size_t first, std::size_t count) {
        const Rows hidden = scratch_.block.rows();
        for (std::size_t r = 0; r < count; ++r) {
            const Row& row = pass_.rows[first + r];
            pass_.kernels.quantize({weight, row.tree->stored(pass_.layers.size() - 1, row.slot), 1,
                                    nullptr, from_row(weight, hidden, r), scratch_.block.line()});
        }
        pass_.output.answer(first, count, hidden, scratch_.block.output());
    });
}

}  // namespace secondpass
