// Products by look-up, for 1- and 2-bit weights on CPUs with AVX-512 VBMI and VNNI.
//
// Four neighboring codes of x have 16 subset sums. Four such tables, for 16 columns, fill one register;
// vpermb looks 64 of them up at once by 6-bit indices (2 bits choose the table, 4 bits of the weight
// the subset) and vpdpbusd adds the four that belong to one output. One such pair replaces four dot
// instructions at 1 bit and two at 2 bits. Activation rule "quads" makes every sum fit a byte, so sums
// are exact.
//
// With levels l0, l1 (and at 2 bits l2, l3 = l1 + l2 - l0), bits b and codes a:
//   sum of level * a = l0 * sum(a) + (l1 - l0) * sum(b0 a) + (l2 - l0) * sum(b1 a)
// A table entry is moved up by the sum of its negative codes to begin at 0; `start` takes that back.
#include "vec_avx512.h"

#include "finish.h"

namespace secondpass {
namespace {

constexpr std::size_t kTableBytes = 64;
constexpr std::size_t kTableColumns = 16;

// Bytes 0 to 3 of every lane hold the four tables' numbers, at the index bits that choose the table.
inline Ints indices(Ints packed, int nibble) {
    const Ints low = _mm512_set1_epi8(15);
    const Ints table = _mm512_set1_epi32(0x30201000);
    if (nibble == 1) packed = _mm512_srli_epi16(packed, 4);
    return _mm512_ternarylogic_epi32(packed, low, table, 0xEA);  // (packed & low) | table
}

inline Ints look_up_add(Ints sums, Ints index, Ints table, Ints factor) {
    return _mm512_dpbusd_epi32(sums, _mm512_permutexvar_epi8(index, table), factor);
}

template <unsigned kBits, int kRows, int kVectors>
inline void multiply_group(const Tile& a, std::size_t column, std::size_t group, float* partial) {
    constexpr int kNibbles = 2;
    constexpr std::size_t kTablesPerWord = kBits == 1 ? 2 : 1;
    const Weight& w = *a.weight;
    const std::size_t count = a.words_per_group;
    const std::uint32_t* words = w.words + (a.panel * a.groups + group) * count * kPanel + column;
    const std::uint8_t* tables =
        a.tables + group * count * kTablesPerWord * kRows * kTableBytes;
    const Ints factors[kNibbles] = {
        _mm512_set1_epi8(static_cast<char>(w.levels[1] - w.levels[0])),
        _mm512_set1_epi8(static_cast<char>(w.levels[kBits] - w.levels[0]))};
    Ints sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            sums[r][v] = first_sums(a, r, group);
            keep_in_register(sums[r][v]);
        }
    for (std::size_t word = 0; word < count; ++word, words += kPanel) {
#pragma GCC unroll 2
        for (std::size_t half = 0; half < kTablesPerWord; ++half) {
            Ints index[kNibbles][kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const Ints packed = load(words + v * kLanes);
                if (half == 0) prefetch_next(a, words + v * kLanes);
                index[0][v] = indices(packed, static_cast<int>(half));
                if (kBits == 2) index[1][v] = indices(packed, 1);
            }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                Ints table = _mm512_load_si512(tables + r * kTableBytes);
                keep_in_register(table);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    sums[r][v] = look_up_add(sums[r][v], index[0][v], table, factors[0]);
                if (kBits == 1) continue;
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    sums[r][v] = look_up_add(sums[r][v], index[1][v], table, factors[1]);
            }
            tables += kRows * kTableBytes;
        }
    }
    alignas(64) std::uint32_t stored[kRows * kVectors * kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
            store(stored + (r * kVectors + v) * kLanes, sums[r][v]);
    finish<kVectors>(a, kRows, column, group, stored, partial);
}

template <unsigned kBits, int kRows>
void multiply_rows(const Tile& a) {
    constexpr int kVectors = vectors_for(kRows);
    alignas(64) float partial[kRows * kVectors * kLanes];
    if (a.groups > 1) __builtin_memset(partial, 0, sizeof partial);
    for (std::size_t column = 0; column < kPanel; column += kVectors * kLanes)
        for (std::size_t group = 0; group < a.groups; ++group)
            multiply_group<kBits, kRows, kVectors>(a, column, group, partial);
}

// As multiply_rows<a.rows>, for 1 <= a.rows <= kRows.
template <unsigned kBits, int kRows>
void multiply_remainder(const Tile& a) {
    if constexpr (kRows > 1) {
        if (a.rows < static_cast<std::size_t>(kRows)) return multiply_remainder<kBits, kRows - 1>(a);
    }
    multiply_rows<kBits, kRows>(a);
}

// Byte shuffles that turn codes into tables, as indices of vpermb.
struct Shuffles {
    // From 32 positive parts p and 32 negative parts n of a quad's codes a0..a3, eight sums:
    //   first[0..3] = (p or n of a0) + (p or n of a1), first[4..7] likewise of a2 and a3
    alignas(64) std::uint8_t even[64];
    alignas(64) std::uint8_t odd[64];
    // From eight quads' such sums, 16 entries of four quads: half 0 the first four, 1 the others.
    alignas(64) std::uint8_t low[2][64];
    alignas(64) std::uint8_t high[2][64];
};

constexpr Shuffles make_shuffles() {
    Shuffles s{};
    for (int i = 0; i < 64; ++i) {
        const int quad = i / 8;
        const int pair = i / 4 % 2;
        const int is_first_in = i & 1;
        const int is_second_in = i >> 1 & 1;
        s.even[i] = static_cast<std::uint8_t>(4 * quad + 2 * pair + (is_first_in ? 0 : 32));
        s.odd[i] = static_cast<std::uint8_t>(4 * quad + 2 * pair + 1 + (is_second_in ? 0 : 32));
        for (int half = 0; half < 2; ++half) {
            const int from = 8 * (4 * half + i / 16);
            s.low[half][i] = static_cast<std::uint8_t>(from + (i & 3));
            s.high[half][i] = static_cast<std::uint8_t>(from + 4 + (i >> 2 & 3));
        }
    }
    return s;
}

alignas(64) constexpr Shuffles kShuffles = make_shuffles();

}  // namespace

void SECONDPASS_ISA::build_tables(const std::int8_t* codes, std::size_t rows, std::size_t columns,
                                  std::uint8_t* tables) {
    const auto shuffle = [](const std::uint8_t (&by)[64], __m512i bytes) {
        return _mm512_permutexvar_epi8(_mm512_load_si512(by), bytes);
    };
    for (std::size_t r = 0; r < rows; ++r, codes += columns) {
        std::uint8_t* to = tables + r * kTableBytes;
        for (std::size_t k = 0; k < columns; k += 2 * kTableColumns) {
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + k));
            const __m256i positive = _mm256_max_epi8(a, _mm256_setzero_si256());
            const __m256i negative = _mm256_sub_epi8(positive, a);
            const __m512i parts =
                _mm512_inserti64x4(_mm512_castsi256_si512(positive), negative, 1);
            const __m512i sums =
                _mm512_add_epi8(shuffle(kShuffles.even, parts), shuffle(kShuffles.odd, parts));
            for (std::size_t half = 0; half < 2; ++half, to += rows * kTableBytes) {
                if (k + half * kTableColumns >= columns) break;
                _mm512_store_si512(to, _mm512_add_epi8(shuffle(kShuffles.low[half], sums),
                                                       shuffle(kShuffles.high[half], sums)));
            }
        }
    }
}

void SECONDPASS_ISA::lookup_tile(const TileArgs& args) {
    constexpr int kMost = static_cast<int>(kTableRows);
    if (args.weight->bits == 1) return multiply_remainder<1, kMost>(args);
    multiply_remainder<2, kMost>(args);
}

}  // namespace secondpass
