// The functions behind one instruction set's table of kernels. Compiled per instruction set.
#pragma once

#include "kernels.h"

namespace secondpass {
namespace SECONDPASS_ISA {

void norm(const NormArgs& args);
void quantize(const QuantizeArgs& args);
void linear(const LinearArgs& args);
void output(const OutputArgs& args);
float logit(const LogitArgs& args);
void embed(const EmbedArgs& args);
void mix(const MixArgs& args);
void split(const SplitArgs& args);
void attend(const AttendArgs& args);
void cell(const CellArgs& args);

}  // namespace SECONDPASS_ISA

namespace {

template <unsigned kBits>
inline void decode_dot(const std::int8_t* table, std::uint32_t word, std::int8_t* levels) {
#pragma GCC unroll 32
    for (unsigned p = 0; p < kBitsPerWord / kBits; ++p)
        levels[p] = table[word >> (8 * (p % 4) + kBits * (p / 4)) & ((1u << kBits) - 1)];
}

template <unsigned kBits>
inline void decode_lookup(const std::int8_t* table, std::uint32_t word, std::int8_t* levels) {
#pragma GCC unroll 32
    for (unsigned p = 0; p < kBitsPerWord / kBits; ++p) {
        const unsigned shift = 8 * (p / 4 % 4) + p % 4;
        const std::uint32_t code = kBits == 1 ? word >> (shift + 4 * (p / 16)) & 1
                                              : (word >> shift & 1) | (word >> (shift + 4) & 1) << 1;
        levels[p] = table[code];
    }
}

// One row's word among the 64 of a panel.
//   words (64,)
inline std::uint32_t word_of(const Weight& w, const std::uint32_t* words, std::size_t row) {
    if (w.layout != Layout::kLookupBytes) return words[row];
    const std::uint8_t* bytes = reinterpret_cast<const std::uint8_t*>(words) + row;
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < sizeof word; ++i)
        word |= static_cast<std::uint32_t>(bytes[i * kPanel]) << 8 * i;
    return word;
}

// The levels of one word, in order: codes_per_word of them.
inline void decode(const Weight& w, std::uint32_t word, std::int8_t* levels) {
    const bool is_dot = w.layout == Layout::kDot;
    switch (w.bits) {
        case 1:
            return is_dot ? decode_dot<1>(w.levels, word, levels)
                          : decode_lookup<1>(w.levels, word, levels);
        case 2:
            return is_dot ? decode_dot<2>(w.levels, word, levels)
                          : decode_lookup<2>(w.levels, word, levels);
        case 4: return decode_dot<4>(w.levels, word, levels);
        case 8: __builtin_memcpy(levels, &word, sizeof word); return;
    }
    __builtin_unreachable();  // The bindings let no other width in.
}

}  // namespace
}  // namespace secondpass
