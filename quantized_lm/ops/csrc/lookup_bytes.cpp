// Products by look-up, for 1- and 2-bit weights on CPUs with AVX2 and no dot product of bytes.
//
// As in lookup.cpp four neighboring codes of x have 16 subset sums, each a byte, and the same tables are
// made of them; one table of 16 bytes fills half a register. vpshufb looks 32 rows of the weight up in it
// at once, so the 64 rows of a panel have the codes of the same four columns next to each other: layout
// kLookupBytes. One look-up and three additions replace sixteen instructions at 1 bit, eight at 2 bits.
//
// Bytes are added as halves of 16-bit numbers: `both` holds sum(low) + 256 sum(high) modulo 2^16, `high`
// the sums of the high bytes; 257 bytes fit 16 bits. Planes of 2-bit codes are summed one
// after the other. Formulas and `start` are those of lookup.cpp.
#include SECONDPASS_VEC_HEADER

#include "finish.h"

namespace secondpass {
namespace {

constexpr std::size_t kTableBytes = 16;
constexpr std::size_t kQuadsPerWord = 4;  // of a plane, or of half the columns of a 1-bit word
constexpr std::size_t kBlockBytes = kQuadsPerWord * kTableBytes;
constexpr std::size_t kMostQuads = 256;  // of bytes of at most 255 each
constexpr int kRowsTogether = 4;
constexpr int kVectors = 4;  // of sums: 32 rows of the weight

struct ByteSums {
    Ints both;
    Ints high;
};

// total += factor * sums, 32 of them.
inline void flush(const ByteSums& sums, Ints factor, std::uint32_t* total) {
    const Ints low = _mm256_sub_epi16(sums.both, _mm256_slli_epi16(sums.high, 8));
    const Ints first = _mm256_unpacklo_epi16(low, sums.high);
    const Ints second = _mm256_unpackhi_epi16(low, sums.high);
    const __m128i eights[kVectors] = {
        _mm256_castsi256_si128(first), _mm256_castsi256_si128(second),
        _mm256_extracti128_si256(first, 1), _mm256_extracti128_si256(second, 1)};
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v, total += kLanes)
        store(total, add(load(total),
                         _mm256_mullo_epi32(_mm256_cvtepu16_epi32(eights[v]), factor)));
}

// Adds factor times what kRows rows find with one nibble of some words.
//   bytes  of the first word at the first of 32 columns; each of its four is kPanel long
//   tables (words * step / block bytes) of the first word; rows are kBlockBytes apart
//   step   bytes of tables from a word to the next
template <int kRows, int kNibble>
inline void add_nibble(const std::uint8_t* bytes, std::size_t words, const std::uint8_t* tables,
                       std::size_t step, Ints factor, std::uint32_t* total) {
    const Ints low_nibble = _mm256_set1_epi8(15);
    constexpr std::size_t kMostWords = kMostQuads / kQuadsPerWord;
    while (words > 0) {
        ByteSums sums[kRows];
#pragma GCC unroll 4
        for (ByteSums& sum : sums) {
            sum.both = sum.high = broadcast_int(0);
            keep_in_register(sum.both);
            keep_in_register(sum.high);
        }
        std::size_t left = words < kMostWords ? words : kMostWords;
        for (words -= left; left > 0; --left, tables += step) {
#pragma GCC unroll 4
            for (std::size_t quad = 0; quad < kQuadsPerWord; ++quad, bytes += kPanel) {
                Ints index = load(reinterpret_cast<const std::uint32_t*>(bytes));
                if (kNibble == 1) index = _mm256_srli_epi16(index, 4);
                index = bit_and(index, low_nibble);
#pragma GCC unroll 4
                for (int r = 0; r < kRows; ++r) {
                    const __m128i* table = reinterpret_cast<const __m128i*>(
                        tables + static_cast<std::size_t>(r) * kBlockBytes + quad * kTableBytes);
                    const Ints found = _mm256_shuffle_epi8(
                        _mm256_broadcastsi128_si256(_mm_load_si128(table)), index);
                    sums[r].both = _mm256_add_epi16(sums[r].both, found);
                    sums[r].high =
                        _mm256_add_epi16(sums[r].high, _mm256_srli_epi16(found, 8));
                    // Else GCC adds quads to each other first, and has no registers for that.
                    keep_in_register(sums[r].both);
                    keep_in_register(sums[r].high);
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
            flush(sums[r], factor, total + r * kVectors * static_cast<int>(kLanes));
    }
}

// One group of 32 columns for kRows rows of x.
//   tables of these rows; a block of all the tile's rows is `block` bytes
template <unsigned kBits, int kRows>
inline void multiply_group(const Tile& a, std::size_t column, std::size_t group,
                           const std::uint8_t* tables, std::size_t block, float* partial) {
    const Weight& w = *a.weight;
    const std::size_t count = a.words_per_group;
    const std::uint8_t* bytes =
        reinterpret_cast<const std::uint8_t*>(w.words + (a.panel * a.groups + group) * count * kPanel) +
        column;
    alignas(64) std::uint32_t total[kRows * kVectors * kLanes];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
            store(total + (r * kVectors + v) * static_cast<int>(kLanes), first_sums(a, r, group));
    // At 1 bit the nibbles are of different columns, at 2 bits of different planes.
    constexpr std::size_t kBlocksPerWord = kBits == 1 ? 2 : 1;
    const std::size_t step = kBlocksPerWord * block;
    tables += group * count * step;
    const Ints first = broadcast_int(static_cast<std::uint32_t>(w.levels[1] - w.levels[0]));
    const Ints second = broadcast_int(static_cast<std::uint32_t>(w.levels[kBits] - w.levels[0]));
    add_nibble<kRows, 0>(bytes, count, tables, step, first, total);
    add_nibble<kRows, 1>(bytes, count, tables + (kBlocksPerWord - 1) * block, step, second, total);
    finish<kVectors>(a, kRows, column, group, total, partial);
}

template <unsigned kBits, int kRows>
void multiply_rows(const Tile& a, const std::uint8_t* tables, std::size_t block) {
    alignas(64) float partial[kRows * kVectors * kLanes];
    if (a.groups > 1) __builtin_memset(partial, 0, sizeof partial);
    for (std::size_t column = 0; column < kPanel; column += kVectors * kLanes)
        for (std::size_t group = 0; group < a.groups; ++group)
            multiply_group<kBits, kRows>(a, column, group, tables, block, partial);
}

// As multiply_rows<rows>, for 1 <= rows <= kRows.
template <unsigned kBits, int kRows>
void multiply_remainder(const Tile& a, std::size_t rows, const std::uint8_t* tables,
                        std::size_t block) {
    if constexpr (kRows > 1) {
        if (rows < static_cast<std::size_t>(kRows))
            return multiply_remainder<kBits, kRows - 1>(a, rows, tables, block);
    }
    multiply_rows<kBits, kRows>(a, tables, block);
}

template <unsigned kBits>
void multiply_bits(Tile a) {
    const std::size_t block = a.rows * kBlockBytes;
    const std::uint8_t* tables = a.tables;
    for (std::size_t left = a.rows; left > 0;) {
        const std::size_t rows = left < kRowsTogether ? left : kRowsTogether;
        multiply_remainder<kBits, kRowsTogether>(a, rows, tables, block);
        left -= rows;
        tables += rows * kBlockBytes;
        a.step += rows;
        a.start += rows * a.groups;
        a.y += rows * a.y_stride;
    }
}

}  // namespace

void SECONDPASS_ISA::build_tables(const std::int8_t* codes, std::size_t rows, std::size_t columns,
                                  std::uint8_t* tables) {
    constexpr std::size_t kColumns = 4 * kQuadsPerWord;  // of a block
    // Entry i of a quad is the sum over its columns b of the positive part where bit b of i is set, else of
    // the negative one. Half a register each: two quads, their positive parts before the negative ones.
    Ints shuffles[4];
    for (int b = 0; b < 4; ++b) {
        alignas(32) std::uint8_t places[32];
        for (int i = 0; i < 32; ++i)
            places[i] = static_cast<std::uint8_t>(4 * (i / 16) + b + ((i >> b & 1) != 0 ? 0 : 8));
        shuffles[b] = load(reinterpret_cast<const std::uint32_t*>(places));
    }
    const auto sums_of = [&](__m128i parts) {
        const Ints twice = _mm256_broadcastsi128_si256(parts);
        const auto part = [&](int b) { return _mm256_shuffle_epi8(twice, shuffles[b]); };
        return _mm256_add_epi8(_mm256_add_epi8(part(0), part(1)), _mm256_add_epi8(part(2), part(3)));
    };
    for (std::size_t r = 0; r < rows; ++r, codes += columns) {
        std::uint32_t* to = reinterpret_cast<std::uint32_t*>(tables + r * kBlockBytes);
        for (std::size_t k = 0; k < columns; k += kColumns, to += rows * kBlockBytes / 4) {
            const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k));
            const __m128i positive = _mm_max_epi8(a, _mm_setzero_si128());
            const __m128i negative = _mm_sub_epi8(positive, a);
            store(to, sums_of(_mm_unpacklo_epi64(positive, negative)));
            store(to + kLanes, sums_of(_mm_unpackhi_epi64(positive, negative)));
        }
    }
}

void SECONDPASS_ISA::lookup_tile(const TileArgs& args) {
    if (args.weight->bits == 1) return multiply_bits<1>(args);
    multiply_bits<2>(args);
}

}  // namespace secondpass
