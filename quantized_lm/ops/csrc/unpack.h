// Packed codes to float32 weights, a block of one panel at a time. Needs a vec_NAME.h before it.
// To add a bit width: one line in `unpack`, and in `level` where a table look-up does not fit.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace secondpass {
namespace {

// Columns unpacked at a time: a (64, 64) float32 block is 16 KiB, half of a 32 KiB L1 cache.
constexpr std::size_t kBlock = 64;

template <unsigned kBits>
inline Vec level(const Table& table, Ints shifted) {
    if (kBits == 8) return low_byte_to_float(shifted);
    return look_up<kBits>(table, bit_and(shifted, broadcast_int((1u << kBits) - 1)));
}

// block[k - begin][n - 64 * panel] = weight[n, k] for the panel's 64 rows n and begin <= k < end.
//   block (kBlock, 64) float32
template <unsigned kBits>
void unpack_bits(const Weight& w, std::size_t panel, std::size_t begin, std::size_t end,
                 float* block) {
    constexpr std::size_t kPerWord = 32 / kBits;
    static_assert(kBlock % kPerWord == 0, "a block must start on a word");
    const Table table = load_table(w.levels);
    const std::uint32_t* words = w.words + panel * w.words_per_row() * kPanel;
    std::size_t group = begin / w.group_size;
    const float* scale = w.scale + (panel * w.groups() + group) * kPanel;
    std::size_t group_end = (group + 1) * w.group_size;
    for (std::size_t k = begin; k < end; ++k, block += kPanel) {
        if (k == group_end) {
            scale += kPanel;
            group_end += w.group_size;
        }
        const std::uint32_t* word = words + k / kPerWord * kPanel;
        const unsigned shift = static_cast<unsigned>(k % kPerWord) * kBits;
        for (std::size_t n = 0; n < kPanel; n += kLanes) {
            const Vec value = level<kBits>(table, shift_right(load(word + n), shift));
            store(block + n, multiply(value, load(scale + n)));
        }
    }
}

inline void unpack(const Weight& w, std::size_t panel, std::size_t begin, std::size_t end,
                   float* block) {
    switch (w.bits) {
        case 1: return unpack_bits<1>(w, panel, begin, end, block);
        case 2: return unpack_bits<2>(w, panel, begin, end, block);
        case 4: return unpack_bits<4>(w, panel, begin, end, block);
        case 8: return unpack_bits<8>(w, panel, begin, end, block);
    }
    __builtin_unreachable();  // The bindings let no other width in.
}

// y[k] = weight[n, k] for all k, one at a time: a row is spread over memory 256 bytes apart. Goes
// word by word, so that nothing is divided in the loop.
inline void dequantize_row(const Weight& weight, std::size_t n, float* y) {
    const std::size_t panel = n / kPanel;
    const std::size_t lane = n % kPanel;
    const std::uint32_t* words = weight.words + panel * weight.words_per_row() * kPanel + lane;
    const float* scale = weight.scale + panel * weight.groups() * kPanel + lane;
    const std::uint32_t mask = (1u << weight.bits) - 1;
    const std::size_t per_word = 32 / weight.bits;
    std::size_t group_end = weight.group_size;
    for (std::size_t begin = 0; begin < weight.K; begin += per_word, words += kPanel) {
        std::uint32_t word = *words;
        const std::size_t end = begin + per_word < weight.K ? begin + per_word : weight.K;
        for (std::size_t k = begin; k < end; ++k, word >>= weight.bits) {
            if (k == group_end) {
                scale += kPanel;
                group_end += weight.group_size;
            }
            const std::uint32_t code = word & mask;
            const float level = weight.bits == 8
                                    ? static_cast<float>(static_cast<std::int8_t>(code))
                                    : weight.levels[code];
            y[k] = level * *scale;
        }
    }
}

}  // namespace
}  // namespace secondpass
