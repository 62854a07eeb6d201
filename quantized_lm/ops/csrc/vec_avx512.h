// Sixteen lanes: AVX-512 F, BW, DQ and VL. vec_scalar.h documents each name.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

using Vec = __m512;
using Ints = __m512i;

constexpr std::size_t kLanes = 16;
constexpr int kTileRows = 8;
constexpr int kAccumulators = 16;

inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec v) { _mm512_storeu_ps(to, v); }
inline Vec broadcast(float value) { return _mm512_set1_ps(value); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
inline float reduce_maximum(Vec v) { return _mm512_reduce_max_ps(v); }

inline Ints load(const std::uint32_t* from) { return _mm512_loadu_si512(from); }
inline Ints broadcast_int(std::uint32_t value) {
    return _mm512_set1_epi32(static_cast<int>(value));
}
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints shift_left(Ints v, unsigned count) {
    return _mm512_sll_epi32(v, _mm_cvtsi32_si128(static_cast<int>(count)));
}
inline Ints shift_right(Ints v, unsigned count) {
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128(static_cast<int>(count)));
}

inline Vec low_byte_to_float(Ints v) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24));
}

inline Ints bits_of(Vec v) { return _mm512_castps_si512(v); }
inline Vec vec_of(Ints bits) { return _mm512_castsi512_ps(bits); }

struct Table {
    __m512 levels;
};

inline Table load_table(const float* levels) { return {load(levels)}; }

template <unsigned kBits>
inline Vec look_up(const Table& table, Ints codes) {
    return _mm512_permutexvar_ps(codes, table.levels);
}

}  // namespace
}  // namespace secondpass
