#include "row_blocks.h"

#include <algorithm>

namespace secondpass {
namespace {

std::size_t count_blocks(std::size_t rows, std::size_t threads) {
    return std::min(rows, threads * ceil_divide(rows, threads * kRowBlock));
}

}  // namespace

RowBlocks::RowBlocks(const std::vector<Row>& rows, Pool& pool)
    : pool_(pool), row_count_(rows.size()), states_(count_blocks(rows.size(), pool.threads())) {
    std::size_t first_of_tree = 0;
    for (std::size_t b = 0; b < states_.size(); ++b) {
        const auto [first, end] = share(row_count_, b, states_.size());
        for (std::size_t r = first; r < end; ++r) {
            if (r > 0 && rows[r].tree != rows[r - 1].tree) first_of_tree = b;
            if (r == first) states_[b].first_of_tree = first_of_tree;
        }
    }
}

void RowBlocks::wait_for_ancestors(const RowBlock& block, std::size_t layers) const noexcept {
    for (std::size_t b = states_[block.index].first_of_tree; b < block.index; ++b)
        pool_.wait_for(states_[b].layers, layers);
}

}  // namespace secondpass
