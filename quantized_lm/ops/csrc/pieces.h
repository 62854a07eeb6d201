// How threads share the products of one weight.
#pragma once

#include <algorithm>
#include <cstddef>

#include "pool.h"

namespace secondpass {

// Rows [first_row, first_row + rows) against panels [first_panel, first_panel + panels) of a weight.
struct Piece {
    std::size_t first_row;
    std::size_t rows;
    std::size_t first_panel;
    std::size_t panels;
};

// Into how many bands of rows to cut, so that the thread with the most work is done soonest. Going over a
// panel costs about as much as a few more rows would.
inline std::size_t bands_of(std::size_t rows, std::size_t panels, std::size_t threads) {
    constexpr std::size_t kRowsOfPanel = 3;
    std::size_t best = 1;
    std::size_t least = static_cast<std::size_t>(-1);
    for (std::size_t bands = 1; bands <= std::min(rows, threads); ++bands) {
        const std::size_t cost = ((bands * panels + threads - 1) / threads) *
                                 ((rows + bands - 1) / bands + kRowsOfPanel);
        if (cost < least) {
            least = cost;
            best = bands;
        }
    }
    return best;
}

// Calls visit(piece) for this thread's pieces. Threads get neighboring panels, because panels of several
// threads then stay each in its core's own cache.
template <typename Visit>
void for_each_piece(std::size_t rows, std::size_t panels, std::size_t thread, std::size_t threads,
                    Visit visit) {
    const std::size_t bands = bands_of(rows, panels, threads);
    auto [unit, end] = share(bands * panels, thread, threads);
    while (unit < end) {
        const std::size_t band = unit / panels;
        const std::size_t first = unit % panels;
        const std::size_t count = std::min(panels - first, end - unit);
        const auto [begin_row, end_row] = share(rows, band, bands);
        visit(Piece{begin_row, end_row - begin_row, first, count});
        unit += count;
    }
}

}  // namespace secondpass
