// One lane, plain C++: the definition that the SIMD headers are tested against. This header also
// documents the interface: a vec_NAME.h defines exactly these names, with more lanes, and those of
// vec_codes.h.
// Everything is in an unnamed namespace, so that no two instruction sets share a symbol.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

// --- floats ---

using Vec = float;
using Ints = std::uint32_t;

constexpr std::size_t kLanes = 1;

inline Vec load(const float* from) { return *from; }
inline void store(float* to, Vec v) { *to = v; }
inline Vec broadcast(float value) { return value; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec subtract(Vec a, Vec b) { return a - b; }
inline Vec multiply(Vec a, Vec b) { return a * b; }
inline Vec reciprocal(Vec v) { return 1.0f / v; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
inline Vec minimum(Vec a, Vec b) { return a < b ? a : b; }
inline float reduce_add(Vec v) { return v; }
inline float reduce_maximum(Vec v) { return v; }
// Lane i: the sum of all lanes of v[i].
inline Vec reduce_add_each(const Vec (&v)[kLanes]) { return v[0]; }
// Whether a > b in any lane.
inline bool any_greater(Vec a, Vec b) { return a > b; }
// v in the first `count` lanes, other in the rest.
inline Vec first_lanes(std::size_t count, Vec v, Vec other) { return count > 0 ? v : other; }

inline Ints load(const std::uint32_t* from) { return *from; }
inline void store(std::uint32_t* to, Ints v) { *to = v; }
inline Ints broadcast_int(std::uint32_t value) { return value; }
inline Ints add(Ints a, Ints b) { return a + b; }
inline Ints bit_and(Ints a, Ints b) { return a & b; }
inline Ints maximum_unsigned(Ints a, Ints b) { return a > b ? a : b; }
inline std::uint32_t reduce_maximum_unsigned(Ints v) { return v; }
// As signed numbers.
inline Vec to_float(Ints v) { return static_cast<float>(static_cast<std::int32_t>(v)); }

inline Ints bits_of(Vec v) {
    Ints bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return bits;
}

inline Vec vec_of(Ints bits) {
    Vec v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
}

// i is an integer, at most 127; 2^i may count as 0 where i is below -126.
inline Vec times_power_of_two(Vec v, Vec i) {
    if (!(i >= -126.0f)) return v * 0.0f;
    return v * vec_of(static_cast<std::uint32_t>(static_cast<std::int32_t>(i) + 127) << 23);
}
// Half to even.
inline Vec nearest_integer(Vec v) { return __builtin_rintf(v); }

// Largest (|x0| + |x1|) + (|x2| + |x3|) over groups of four; count is a multiple of 16.
inline float highest_quad(const float* x, std::size_t count) {
    float highest = 0.0f;
    for (std::size_t k = 0; k < count; k += 4) {
        const float sum = (__builtin_fabsf(x[k]) + __builtin_fabsf(x[k + 1])) +
                          (__builtin_fabsf(x[k + 2]) + __builtin_fabsf(x[k + 3]));
        highest = maximum(highest, sum);
    }
    return highest;
}

// kLanes int8: v rounded half to even, each at most 127 in magnitude.
inline void store_codes(std::int8_t* to, Vec v) {
    *to = static_cast<std::int8_t>(nearest_integer(v));
}

// --- dot products of int8: four columns per lane ---

// Rows of x in the largest tile, and how many accumulators the registers hold.
constexpr int kTileRows = 4;
constexpr int kAccumulators = 8;

// Tells GCC that v is a value of its own and in a register. Otherwise it folds a load into every
// instruction that uses the loaded value, which makes the loads the limit, and starts equal sums as
// one register that it then copies in every round of the loop.
inline void keep_in_register(Ints&) {}

// Four levels per lane. What those of a table are increased by, so that they suit the instruction.
using Levels = std::uint32_t;
inline std::int32_t level_offset(const std::int8_t*, std::size_t) { return 0; }
struct LevelTable {
    const std::int8_t* levels;
};
using Codes = std::uint32_t;

inline LevelTable load_levels(const std::int8_t* levels, std::size_t) { return {levels}; }

// The levels of codes 4 * position to 4 * position + 3 of a word of layout kDot.
template <unsigned kBits>
inline Levels unpack(Ints word, unsigned position, const LevelTable& table) {
    if (kBits == 8) return word;
    Levels levels = 0;
    for (unsigned byte = 0; byte < 4; ++byte) {
        const std::uint32_t code = (word >> (8 * byte + kBits * position)) & ((1u << kBits) - 1);
        levels |= static_cast<std::uint32_t>(static_cast<std::uint8_t>(table.levels[code]))
                  << (8 * byte);
    }
    return levels;
}

// Four codes of x in every lane.
inline Codes broadcast_codes(const std::int8_t* from) {
    Codes codes;
    __builtin_memcpy(&codes, from, sizeof codes);
    return codes;
}

// sums + the four products of each lane. Sums wrap; no final sum is large enough to.
inline Ints dot_add(Ints sums, Levels levels, Codes codes) {
    for (unsigned shift = 0; shift < 32; shift += 8) {
        const int level = static_cast<std::int8_t>(levels >> shift & 0xFF);
        const int code = static_cast<std::int8_t>(codes >> shift & 0xFF);
        sums += static_cast<std::uint32_t>(level * code);
    }
    return sums;
}

}  // namespace
}  // namespace secondpass

#include "vec_codes.h"
