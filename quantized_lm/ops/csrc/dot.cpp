// Products by dot instructions: codes of the weight are unpacked to int8 levels in registers, four
// columns per lane, and multiplied with four codes of x at a time. Written once, compiled per
// instruction set (CMakeLists.txt says how).
//
// Sums are exact integers, so neither the tile nor the order of its columns can change a bit.
#include SECONDPASS_VEC_HEADER

#include "finish.h"

namespace secondpass {
namespace {

// Asks for where a tile's results will go: stores to memory that no cache holds would wait for it one after
// another. Products with 16384 outputs of 800 rows took 5 to 17 % longer without.
inline void prefetch_outputs(const float* y, std::size_t y_stride, int rows, std::size_t columns) {
    for (int r = 0; r < rows; ++r, y += y_stride) prefetch<1>(y, columns);
}

// One group of `kVectors` vectors of columns for kRows rows.
//   words at the group's first word and the tile's first column; words of a panel are kPanel apart
template <unsigned kBits, int kRows, int kVectors>
inline void multiply_group(const Tile& a, std::size_t column, std::size_t group,
                           const LevelTable& table, float* partial) {
    constexpr unsigned kPositions = 8 / kBits;
    // Few sums would wait for each other: with two sets, every other addition is independent.
    constexpr int kSets = kRows * kVectors * 2 <= kAccumulators && kPositions > 1 ? 2 : 1;
    const std::size_t count = a.words_per_group;
    const std::uint32_t* words =
        a.weight->words + (a.panel * a.groups + group) * count * kPanel + column;
    const std::int8_t* codes = a.codes + group * count * 4 * kPositions;
    if (group == 0) prefetch_outputs(a.y + column, a.y_stride, kRows, kVectors * kLanes);
    Ints sums[kSets][kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            sums[0][r][v] = first_sums(a, r, group);
            keep_in_register(sums[0][r][v]);
            if (kSets == 2) {
                sums[kSets - 1][r][v] = broadcast_int(0);
                keep_in_register(sums[kSets - 1][r][v]);
            }
        }
    for (std::size_t word = 0; word < count; ++word, words += kPanel, codes += 4 * kPositions) {
        Ints packed[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            packed[v] = load(words + v * kLanes);
            if (kRows > 2) prefetch_next(a, words + v * kLanes);  // fewer only wait for memory
        }
#pragma GCC unroll 8
        for (unsigned position = 0; position < kPositions; ++position) {
            Levels levels[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v)
                levels[v] = unpack<kBits>(packed[v], position, table);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
                const Codes x = broadcast_codes(codes + r * a.columns + 4 * position);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    sums[position % kSets][r][v] =
                        dot_add(sums[position % kSets][r][v], levels[v], x);
            }
        }
    }
    alignas(64) std::uint32_t stored[kRows * kVectors * kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            if (kSets == 2) sums[0][r][v] = add(sums[0][r][v], sums[kSets - 1][r][v]);
            store(stored + (r * kVectors + v) * kLanes, sums[0][r][v]);
        }
    finish<kVectors>(a, kRows, column, group, stored, partial);
}

template <unsigned kBits, int kRows>
void multiply_rows(const Tile& a, const LevelTable& table) {
    constexpr int kVectors = vectors_for(kRows);
    alignas(64) float partial[kRows * kVectors * kLanes];
    if (a.groups > 1) __builtin_memset(partial, 0, sizeof partial);
    for (std::size_t column = 0; column < kPanel; column += kVectors * kLanes)
        for (std::size_t group = 0; group < a.groups; ++group)
            multiply_group<kBits, kRows, kVectors>(a, column, group, table, partial);
}

// As multiply_rows<rows>, for 1 <= rows <= kRows.
template <unsigned kBits, int kRows>
void multiply_remainder(const Tile& a, std::size_t rows, const LevelTable& table) {
    if constexpr (kRows > 1) {
        if (rows < static_cast<std::size_t>(kRows))
            return multiply_remainder<kBits, kRows - 1>(a, rows, table);
    }
    multiply_rows<kBits, kRows>(a, table);
}

template <unsigned kBits>
void multiply_bits(Tile a) {
    const LevelTable table = load_levels(a.weight->levels, kBits);
    for (std::size_t left = a.rows; left > 0;) {
        const std::size_t rows = left < kTileRows ? left : kTileRows;
        multiply_remainder<kBits, kTileRows>(a, rows, table);
        left -= rows;
        a.codes += rows * a.columns;
        a.step += rows;
        a.start += rows * a.groups;
        a.y += rows * a.y_stride;
    }
}

}  // namespace

void SECONDPASS_ISA::dot_tile(const TileArgs& args) {
    switch (args.weight->bits) {
        case 1: return multiply_bits<1>(args);
        case 2: return multiply_bits<2>(args);
        case 4: return multiply_bits<4>(args);
        case 8: return multiply_bits<8>(args);
    }
    __builtin_unreachable();  // The bindings let no other width in.
}

}  // namespace secondpass
