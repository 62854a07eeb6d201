// Eight lanes: AVX2 and FMA, with AVX-VNNI's dot product where the compiler has it.
// vec_scalar.h documents each name.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

using Vec = __m256;
using Ints = __m256i;

constexpr std::size_t kLanes = 8;

inline Vec load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Vec v) { _mm256_storeu_ps(to, v); }
inline Vec broadcast(float value) { return _mm256_set1_ps(value); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec reciprocal(Vec v) { return _mm256_div_ps(broadcast(1.0f), v); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec minimum(Vec a, Vec b) { return _mm256_min_ps(a, b); }

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

inline Vec reduce_add_each(const Vec (&v)[kLanes]) {
    const Vec low =
        _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Vec high =
        _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

inline bool any_greater(Vec a, Vec b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
inline Vec first_lanes(std::size_t count, Vec v, Vec other) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i is_first = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(is_first));
}

inline Ints load(const std::uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store(std::uint32_t* to, Ints v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
}
inline Ints broadcast_int(std::uint32_t value) {
    return _mm256_set1_epi32(static_cast<int>(value));
}
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints maximum_unsigned(Ints a, Ints b) { return _mm256_max_epu32(a, b); }
inline std::uint32_t reduce_maximum_unsigned(Ints v) {
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xB1));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(half));
}
inline Vec to_float(Ints v) { return _mm256_cvtepi32_ps(v); }

inline Ints bits_of(Vec v) { return _mm256_castps_si256(v); }
inline Vec vec_of(Ints bits) { return _mm256_castsi256_ps(bits); }

inline Vec times_power_of_two(Vec v, Vec i) {
    const __m256i exponent = _mm256_max_epi32(
        _mm256_add_epi32(_mm256_cvtps_epi32(i), _mm256_set1_epi32(127)), _mm256_setzero_si256());
    return multiply(v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline Vec nearest_integer(Vec v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline float highest_quad(const float* x, std::size_t count) {
    const Vec magnitude = vec_of(broadcast_int(0x7FFFFFFF));
    Vec highest = _mm256_setzero_ps();
    for (std::size_t k = 0; k < count; k += kLanes) {
        const Vec ones = _mm256_and_ps(load(x + k), magnitude);
        const Vec pairs = add(ones, _mm256_permute_ps(ones, 0xB1));
        highest = maximum(highest, add(pairs, _mm256_permute_ps(pairs, 0x4E)));
    }
    return reduce_maximum(highest);
}

inline void store_codes(std::int8_t* to, Vec v) {
    const __m256i wide = _mm256_cvtps_epi32(v);
    const __m128i shorts =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(shorts, shorts));
}

constexpr int kTileRows = 4;
constexpr int kAccumulators = 8;

inline void keep_in_register(Ints& v) { asm("" : "+x"(v)); }

struct LevelTable {
    __m256i levels;
};
using Codes = __m256i;

inline Codes broadcast_codes(const std::int8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}

#if defined(__AVXVNNI__)
// vpdpbusd multiplies unsigned by signed bytes, so levels are moved up to 0..255.
using Levels = __m256i;
constexpr std::int32_t kLevelOffset = 128;
inline std::int32_t level_offset(const std::int8_t*, std::size_t) { return kLevelOffset; }
inline Levels levels_of(__m256i levels) { return levels; }
inline Ints dot_add(Ints sums, Levels levels, Codes codes) {
    return _mm256_dpbusd_avx_epi32(sums, levels, codes);
}
#else
// vpmaddubsw adds two products of unsigned by signed bytes in 16 bits: |level| <= 128 times
// |code| <= 127, twice, is below 2^15, so nothing saturates. A level's sign goes to the code.
struct Levels {
    __m256i value;
    __m256i magnitude;
};
constexpr std::int32_t kLevelOffset = 0;
inline Levels levels_of(__m256i levels) { return {levels, _mm256_abs_epi8(levels)}; }
inline Ints dot_add(Ints sums, const Levels& levels, Codes codes) {
    const __m256i pairs =
        _mm256_maddubs_epi16(levels.magnitude, _mm256_sign_epi8(codes, levels.value));
    return add(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Whether there are 16 evenly spaced levels: then even.cpp multiplies by their codes.
inline bool is_even(const std::int8_t* levels, std::size_t bits) {
    if (bits != 4) return false;
    const int step = levels[1] - levels[0];
    for (int code = 2; code < 16; ++code)
        if (levels[code] - levels[code - 1] != step) return false;
    return true;
}
inline std::int32_t level_offset(const std::int8_t* levels, std::size_t bits) {
    return is_even(levels, bits) ? -levels[0] : 0;
}
#endif

inline LevelTable load_levels(const std::int8_t* levels, std::size_t) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels));
    return {_mm256_broadcastsi128_si256(
        _mm_xor_si128(sixteen, _mm_set1_epi8(static_cast<char>(kLevelOffset))))};
}

template <unsigned kBits>
inline Levels unpack(Ints word, unsigned position, const LevelTable& table) {
    if (kBits == 8)
        return levels_of(_mm256_xor_si256(word, _mm256_set1_epi8(static_cast<char>(kLevelOffset))));
    const Ints shifted = position == 0 ? word : _mm256_srli_epi16(word, kBits * position);
    const Ints codes = bit_and(shifted, _mm256_set1_epi8((1 << kBits) - 1));
    return levels_of(_mm256_shuffle_epi8(table.levels, codes));
}

}  // namespace
}  // namespace secondpass

#include "vec_codes.h"
