// One thread's share of an LSTM's forward pass.
#pragma once

#include <cstddef>
#include <vector>

#include "batch.h"
#include "buffer.h"
#include "gates.h"
#include "kernels.h"
#include "levels.h"
#include "output_layer.h"
#include "pieces.h"
#include "plan.h"
#include "pool.h"
#include "scratch.h"

namespace secondpass {

struct LstmLayer {
    Gates input;
    Gates recurrent;
};

// What all threads work on in a chunk.
struct LstmShared {
    Buffer<float> input;  // (rows, gates, padded dim): products of a layer's input, biases added
    GateRows x;           // what they are products of, by row, for the first layer by token
    GateRows h;           // what the step's recurrent products are of, by parent
    Buffer<float> above_roots;  // a state of zeros
};

// What one thread works with.
struct LstmScratch {
    Buffer<float> embedded;   // (block, model_dim)
    Buffer<float> recurrent;  // (parents, gates, columns): block rows of one panel, or fewer of more
    BlockScratch block;
};

// What all threads share.
struct LstmPass {
    const Kernels& kernels;
    const LstmPlan& plan;
    const std::vector<LstmLayer>& layers;
    Pool& pool;
    const std::vector<Row>& rows;
    const Levels& levels;
    const LstmShared& shared;
    const OutputLayer& output;
};

class LstmWorker {
public:
    LstmWorker(const LstmPass& pass, const LstmScratch& scratch, std::size_t thread)
        : pass_(pass), scratch_(scratch), thread_(thread) {}

    // Once on each thread of the pool.
    void run() const noexcept;

private:
    using Chunk = Levels::Chunk;

    // Calls work(first, count) for blocks of at most kRowBlock of this thread's share of `count` items.
    template <typename Work>
    void for_each_block(std::size_t count, Work work) const {
        const auto [begin, end] = share(count, thread_, pass_.pool.threads());
        for (std::size_t first = begin; first < end; first += kRowBlock)
            work(first, end - first < kRowBlock ? end - first : kRowBlock);
    }
    // Calls work(piece) for this thread's pieces of a product, at most gates.most_rows() rows each.
    template <typename Work>
    void for_each_piece(const Gates& gates, std::size_t rows, Work work) const {
        secondpass::for_each_piece(
            rows, gates.panels(), thread_, pass_.pool.threads(), [&](Piece all) {
                const std::size_t end = all.first_row + all.rows;
                for (Piece piece = all; piece.first_row < end; piece.first_row += piece.rows) {
                    piece.rows = end - piece.first_row < gates.most_rows() ? end - piece.first_row
                                                                           : gates.most_rows();
                    work(piece);
                }
            });
    }

    void run_layer(const Chunk& chunk, std::size_t layer) const;
    void round_tokens(const Chunk& chunk) const;
    void round_inputs(const Chunk& chunk, std::size_t layer) const;
    void multiply_inputs(const Chunk& chunk, std::size_t layer) const;
    void round_parents(const Levels::Step& step, std::size_t layer) const;
    void run_step(const Chunk& chunk, const Levels::Step& step, std::size_t layer) const;
    void update(const Chunk& chunk, const Piece& parents, std::size_t layer) const;
    void answer() const;

    const float* state_of(const Levels::Parent& parent, std::size_t layer) const {
        return parent.tree == nullptr ? pass_.shared.above_roots.data()
                                      : parent.tree->stored(layer, parent.slot);
    }
    std::size_t padded_dim() const { return pass_.layers[0].input.panels() * kPanel; }
    // Of the first gate.
    float* input_of(std::size_t row) const {
        return pass_.shared.input.data() + row * kGates * padded_dim();
    }

    const LstmPass& pass_;
    const LstmScratch& scratch_;
    const std::size_t thread_;
};

}  // namespace secondpass
