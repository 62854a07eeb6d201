// Products with 16 evenly spaced levels, on CPUs with AVX2 and no dot product of bytes.
//
// With level = first + step * code, the sum of level * x is first * sum(x) + step * sum(code * x); the first
// term is where sums start (`level_offset`). Codes are unsigned, as vpmaddubsw wants one side to be, so no
// sign has to be handed over, no level is looked up, and the sums of some words fit 16 bits before they are
// widened: two instructions for a product where dot.cpp needs four.
#include SECONDPASS_VEC_HEADER

#include "finish.h"

namespace secondpass {
namespace {

constexpr int kRowsTogether = 6;
constexpr int kVectors = 2;  // of columns: what the registers hold
constexpr std::size_t kCodesPerWord = 8;
// Words whose sums of products fit 16 bits: two positions of two products in every lane.
constexpr std::size_t kMostWords = 32767 / (15 * 127 * 2 * 2);

template <int kRows>
using Sums = Ints[kRows][kVectors];

// sums = codes of the weight * codes of x over `count` words, in 16 bits.
//   words, codes at the first word, as in dot.cpp
template <int kRows>
inline void sum_products(const Tile& a, const std::uint32_t* words, const std::int8_t* codes,
                         std::size_t count, Sums<kRows>& sums) {
    const Ints nibble = _mm256_set1_epi8(15);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            sums[r][v] = broadcast_int(0);
            keep_in_register(sums[r][v]);
        }
    for (std::size_t i = 0; i < count; ++i, words += kPanel, codes += kCodesPerWord) {
        if (kRows > 2) prefetch_next(a, words);
#pragma GCC unroll 2
        for (int position = 0; position < 2; ++position) {
            Ints levels[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const Ints word = load(words + v * kLanes);
                levels[v] = bit_and(_mm256_srli_epi16(word, 4 * position), nibble);
            }
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
                const Codes x = broadcast_codes(codes + r * a.columns + 4 * position);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    // GCC would add products to each other first, and has no registers for that.
                    asm("vpaddw %1, %0, %0"
                        : "+x"(sums[r][v])
                        : "x"(_mm256_maddubs_epi16(levels[v], x)));
            }
        }
    }
}

// One group of kVectors vectors of columns for kRows rows.
//   step (16,) int16, between two levels
template <int kRows>
inline void multiply_group(const Tile& a, std::size_t column, std::size_t group, Ints step,
                           float* partial) {
    const std::size_t first = group * a.words_per_group;
    const std::uint32_t* words =
        a.weight->words + (a.panel * a.groups * a.words_per_group + first) * kPanel + column;
    const std::int8_t* codes = a.codes + first * kCodesPerWord;
    alignas(32) std::uint32_t total[kRows * kVectors * kLanes];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
            store(total + (r * kVectors + v) * kLanes, first_sums(a, r, group));
    for (std::size_t left = a.words_per_group; left > 0;) {
        const std::size_t count = left < kMostWords ? left : kMostWords;
        Sums<kRows> sums;
        sum_products<kRows>(a, words, codes, count, sums);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                std::uint32_t* to = total + (r * kVectors + v) * kLanes;
                store(to, add(load(to), _mm256_madd_epi16(sums[r][v], step)));
            }
        // Else GCC keeps the totals in registers, and the sums in memory.
        asm volatile("" : : "r"(total) : "memory");
        left -= count;
        words += count * kPanel;
        codes += count * kCodesPerWord;
    }
    finish<kVectors>(a, kRows, column, group, total, partial);
}

template <int kRows>
void multiply_rows(const Tile& a) {
    const std::int8_t* levels = a.weight->levels;
    const Ints step = _mm256_set1_epi16(static_cast<std::int16_t>(levels[1] - levels[0]));
    alignas(32) float partial[kRows * kVectors * kLanes];
    if (a.groups > 1) __builtin_memset(partial, 0, sizeof partial);
    for (std::size_t column = 0; column < kPanel; column += kVectors * kLanes)
        for (std::size_t group = 0; group < a.groups; ++group)
            multiply_group<kRows>(a, column, group, step, partial);
}

// As multiply_rows<rows>, for 1 <= rows <= kRows.
template <int kRows>
void multiply_remainder(const Tile& a, std::size_t rows) {
    if constexpr (kRows > 1) {
        if (rows < static_cast<std::size_t>(kRows)) return multiply_remainder<kRows - 1>(a, rows);
    }
    multiply_rows<kRows>(a);
}

}  // namespace

void SECONDPASS_ISA::even_tile(const TileArgs& args) {
    Tile a = args;
    for (std::size_t left = a.rows; left > 0;) {
        const std::size_t rows = left < kRowsTogether ? left : kRowsTogether;
        multiply_remainder<kRowsTogether>(a, rows);
        left -= rows;
        a.codes += rows * a.columns;
        a.step += rows;
        a.start += rows * a.groups;
        a.y += rows * a.y_stride;
    }
}

}  // namespace secondpass
