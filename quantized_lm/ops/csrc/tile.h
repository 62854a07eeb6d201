// A tile: some rows of x against one panel of a weight. What dot.cpp and a look-up compute and linear.cpp
// asks for. Compiled per instruction set.
#pragma once

#include "kernels.h"

namespace secondpass {
namespace SECONDPASS_ISA {

// y[r, 64 * panel + n] for `rows` rows and the 64 rows n of the panel, as LinearArgs describes.
//   codes  (rows, padded_columns) int8; step (rows,); start (rows, G)
//   tables (columns / 16, rows, 64) uint8, made of `codes` by build_tables; not for layout kDot
//   bias   (64,) or null, y (rows, 64), both at the panel's first column
struct TileArgs {
    const Weight* weight;
    bool is_even;                 // whether there is an even_tile, and it is its work
    std::size_t groups;           // groups_of(*weight)
    std::size_t words_per_group;  // words_per_group(*weight)
    std::size_t columns;          // padded_columns(*weight)
    std::size_t panel;
    std::size_t rows;
    const std::int8_t* codes;
    const std::uint8_t* tables;
    const float* step;
    const std::int32_t* start;
    const float* bias;
    Activation activation;
    bool adds;
    float* y;
    std::size_t y_stride;
};

void dot_tile(const TileArgs& args);

#if defined(SECONDPASS_EVEN)
// For 16 evenly spaced levels.
void even_tile(const TileArgs& args);
#endif

#if defined(SECONDPASS_LOOKUP)
// For each row and each 4 codes a in it, the 16 sums over subsets of a, moved up to begin at 0.
//   codes  (rows, columns) int8, columns a multiple of 16; 16 more bytes may be read
//   tables (columns / 16, rows, 64) uint8
void build_tables(const std::int8_t* codes, std::size_t rows, std::size_t columns,
                  std::uint8_t* tables);

void lookup_tile(const TileArgs& args);
#endif

}  // namespace SECONDPASS_ISA
}  // namespace secondpass
