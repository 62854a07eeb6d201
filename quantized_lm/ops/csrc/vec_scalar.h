// One lane, plain C++: the definition that the SIMD headers are tested against. This header also
// documents the interface: a vec_NAME.h defines exactly these names, with more lanes.
// Everything is in an unnamed namespace, so that no two instruction sets share a symbol.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

using Vec = float;
using Ints = std::uint32_t;

constexpr std::size_t kLanes = 1;
// Rows of x in the largest tile, and how many accumulators the registers hold.
constexpr int kTileRows = 4;
constexpr int kAccumulators = 8;

inline Vec load(const float* from) { return *from; }
inline void store(float* to, Vec v) { *to = v; }
inline Vec broadcast(float value) { return value; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec subtract(Vec a, Vec b) { return a - b; }
inline Vec multiply(Vec a, Vec b) { return a * b; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
inline float reduce_add(Vec v) { return v; }
inline float reduce_maximum(Vec v) { return v; }

inline Ints load(const std::uint32_t* from) { return *from; }
inline Ints broadcast_int(std::uint32_t value) { return value; }
inline Ints add(Ints a, Ints b) { return a + b; }
inline Ints bit_and(Ints a, Ints b) { return a & b; }
inline Ints shift_left(Ints v, unsigned count) { return v << count; }
inline Ints shift_right(Ints v, unsigned count) { return v >> count; }

// Lowest byte as int8, converted to float.
inline Vec low_byte_to_float(Ints v) {
    return static_cast<float>(static_cast<std::int8_t>(v & 0xFF));
}

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

// A table of 16 floats, indexed by codes below 1 << kBits.
struct Table {
    const float* levels;
};

inline Table load_table(const float* levels) { return {levels}; }

template <unsigned kBits>
inline Vec look_up(const Table& table, Ints codes) {
    return table.levels[codes];
}

}  // namespace
}  // namespace secondpass
