// Eight lanes: AVX2 and FMA. vec_scalar.h documents each name.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

using Vec = __m256;
using Ints = __m256i;

constexpr std::size_t kLanes = 8;
// 6 x 2 accumulators, 2 weight vectors and 1 broadcast use 15 of the 16 registers.
constexpr int kTileRows = 6;
constexpr int kAccumulators = 12;

inline Vec load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Vec v) { _mm256_storeu_ps(to, v); }
inline Vec broadcast(float value) { return _mm256_set1_ps(value); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }

inline float reduce_add(Vec v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float reduce_maximum(Vec v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline Ints load(const std::uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline Ints broadcast_int(std::uint32_t value) {
    return _mm256_set1_epi32(static_cast<int>(value));
}
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints shift_left(Ints v, unsigned count) {
    return _mm256_sll_epi32(v, _mm_cvtsi32_si128(static_cast<int>(count)));
}
inline Ints shift_right(Ints v, unsigned count) {
    return _mm256_srl_epi32(v, _mm_cvtsi32_si128(static_cast<int>(count)));
}

inline Vec low_byte_to_float(Ints v) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24), 24));
}

inline Ints bits_of(Vec v) { return _mm256_castps_si256(v); }
inline Vec vec_of(Ints bits) { return _mm256_castsi256_ps(bits); }

struct Table {
    __m256 low;
    __m256 high;
};

inline Table load_table(const float* levels) { return {load(levels), load(levels + 8)}; }

template <unsigned kBits>
inline Vec look_up(const Table& table, Ints codes) {
    const Vec low = _mm256_permutevar8x32_ps(table.low, codes);
    if (kBits < 4) return low;
    const Vec high = _mm256_permutevar8x32_ps(table.high, codes);
    // Bit 3 of the code chooses the half; the blend reads the sign bit.
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

}  // namespace
}  // namespace secondpass
