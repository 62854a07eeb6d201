// The rows of a batch in blocks that threads take in turn, and how far each of them is.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include "batch.h"
#include "pool.h"

namespace secondpass {

// Rows [first, first + count) of a batch.
struct RowBlock {
    std::size_t index;
    std::size_t first;
    std::size_t count;
};

// A row's ancestors stand before it, so a block waits for blocks before it and never for those behind. Who
// is held up, by another program say, holds up only those who come after him, and only once he has lost
// the lead of a block that he had on them; at barriers each delay of anybody would be one of all.
class RowBlocks {
public:
    // Of a batch that was built: as many for each thread, all of the same size or nearly so. Throws
    // std::bad_alloc.
    RowBlocks(const std::vector<Row>& rows, Pool& pool);

    // Calls run(block) for the blocks that nobody else has taken, in order. On each thread of the pool.
    template <typename Run>
    void take_all(Run run) noexcept {
        for (std::size_t b; (b = next_.fetch_add(1)) < states_.size();) {
            const auto [first, end] = share(row_count_, b, states_.size());
            run(RowBlock{b, first, end - first});
        }
    }

    // The block's rows have stored what others read of them in one more layer.
    void store_layer(const RowBlock& block) noexcept { pool_.advance(states_[block.index].layers); }

    // Returns when all ancestors of the block's rows have stored so many layers.
    void wait_for_ancestors(const RowBlock& block, std::size_t layers) const noexcept;

private:
    // On a cache line of its own, as others look at it all the time.
    struct alignas(64) State {
        Progress layers{0};             // that are stored
        std::size_t first_of_tree = 0;  // the block in which the tree of its first row begins
    };

    Pool& pool_;
    const std::size_t row_count_;
    std::vector<State> states_;
    std::atomic<std::size_t> next_{0};
};

}  // namespace secondpass
