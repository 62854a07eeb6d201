// Sixteen lanes: AVX-512 F, BW, DQ, VL and VNNI, with look-ups by VBMI where the compiler has it.
// vec_scalar.h documents each name.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

using Vec = __m512;
using Ints = __m512i;

constexpr std::size_t kLanes = 16;

inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec v) { _mm512_storeu_ps(to, v); }
inline Vec broadcast(float value) { return _mm512_set1_ps(value); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
// An estimate of 14 bits and one step of Newton's method: 4 times as fast as a division.
inline Vec reciprocal(Vec v) {
    const Vec estimate = _mm512_rcp14_ps(v);
    return _mm512_mul_ps(estimate, _mm512_fnmadd_ps(v, estimate, broadcast(2.0f)));
}
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec minimum(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
inline float reduce_maximum(Vec v) { return _mm512_reduce_max_ps(v); }

// Four vectors to one: within each quarter, lane i holds the sum of that quarter of vector i.
inline Vec add_quarters(Vec a, Vec b, Vec c, Vec d) {
    const Vec ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Vec cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    return add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
}

// Neighboring quarters of a, then of b, added.
inline Vec add_neighbors(Vec a, Vec b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

inline Vec reduce_add_each(const Vec (&v)[kLanes]) {
    const Vec first = add_quarters(v[0], v[1], v[2], v[3]);
    const Vec second = add_quarters(v[4], v[5], v[6], v[7]);
    const Vec third = add_quarters(v[8], v[9], v[10], v[11]);
    const Vec fourth = add_quarters(v[12], v[13], v[14], v[15]);
    return add_neighbors(add_neighbors(first, second), add_neighbors(third, fourth));
}

inline bool any_greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
inline Vec first_lanes(std::size_t count, Vec v, Vec other) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>((1u << count) - 1), other, v);
}

inline Ints load(const std::uint32_t* from) { return _mm512_loadu_si512(from); }
inline void store(std::uint32_t* to, Ints v) { _mm512_storeu_si512(to, v); }
inline Ints broadcast_int(std::uint32_t value) {
    return _mm512_set1_epi32(static_cast<int>(value));
}
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints maximum_unsigned(Ints a, Ints b) { return _mm512_max_epu32(a, b); }
inline std::uint32_t reduce_maximum_unsigned(Ints v) { return _mm512_reduce_max_epu32(v); }
inline Vec to_float(Ints v) { return _mm512_cvtepi32_ps(v); }

inline Ints bits_of(Vec v) { return _mm512_castps_si512(v); }
inline Vec vec_of(Ints bits) { return _mm512_castsi512_ps(bits); }

inline Vec times_power_of_two(Vec v, Vec i) { return _mm512_scalef_ps(v, i); }
inline Vec nearest_integer(Vec v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

constexpr bool kLooksUp = true;
inline Vec look_up(const float (&table)[32], Ints index) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + kLanes));
}

inline float highest_quad(const float* x, std::size_t count) {
    Vec highest = _mm512_setzero_ps();
    for (std::size_t k = 0; k < count; k += kLanes) {
        const Vec ones = _mm512_abs_ps(load(x + k));
        const Vec pairs = add(ones, _mm512_permute_ps(ones, 0xB1));
        highest = maximum(highest, add(pairs, _mm512_permute_ps(pairs, 0x4E)));
    }
    return reduce_maximum(highest);
}

inline void store_codes(std::int8_t* to, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

constexpr std::size_t kCodeVectors = 4;
inline void store_codes(std::int8_t* to, const Vec (&v)[kCodeVectors]) {
    const __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(v[0]), _mm512_cvtps_epi32(v[1]));
    const __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(v[2]), _mm512_cvtps_epi32(v[3]));
    // Packing works within quarters: quarter i now holds the fours i of all vectors.
    const __m512i fours =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(fours, _mm512_packs_epi16(low, high)));
}

// The sum of what `map` makes of 64 codes at a time; maps 0 to 0. Two sums, because one addition waits for
// the one before it.
template <typename Map>
inline std::int32_t sum_of_codes(const std::int8_t* codes, std::size_t count, Map map) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i even = _mm512_setzero_si512();
    __m512i odd = even;
    std::size_t k = 0;
    for (; k + 128 <= count; k += 128) {
        even = _mm512_dpbusd_epi32(even, ones, map(_mm512_loadu_si512(codes + k)));
        odd = _mm512_dpbusd_epi32(odd, ones, map(_mm512_loadu_si512(codes + k + 64)));
    }
    for (; k < count; k += 64) {
        const std::size_t left = count - k < 64 ? count - k : 64;
        const __m512i some = _mm512_maskz_loadu_epi8(~std::uint64_t{0} >> (64 - left), codes + k);
        even = _mm512_dpbusd_epi32(even, ones, map(some));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
}

inline std::int32_t sum_codes(const std::int8_t* codes, std::size_t count) {
    return sum_of_codes(codes, count, [](__m512i some) { return some; });
}

inline std::int32_t sum_negative_codes(const std::int8_t* codes, std::size_t count) {
    return sum_of_codes(codes, count, [](__m512i some) {
        return _mm512_min_epi8(some, _mm512_setzero_si512());
    });
}

constexpr int kTileRows = 12;
constexpr int kAccumulators = 24;

// vpdpbusd multiplies unsigned by signed bytes, so levels are moved up to 0..255.
using Levels = __m512i;
constexpr std::int32_t kLevelOffset = 128;
inline std::int32_t level_offset(const std::int8_t*, std::size_t) { return kLevelOffset; }
struct LevelTable {
    __m512i levels;
};
using Codes = __m512i;

inline void keep_in_register(Ints& v) { asm("" : "+v"(v)); }

// All 64 bytes hold the table again and again, with its own period: an index may have any bits
// above its own.
inline LevelTable load_levels(const std::int8_t* levels, std::size_t bits) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels));
    const __m128i period = _mm_and_si128(
        _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm_set1_epi8(static_cast<char>((1u << bits) - 1)));
    const __m128i moved = _mm_xor_si128(_mm_shuffle_epi8(sixteen, period),
                                        _mm_set1_epi8(static_cast<char>(kLevelOffset)));
    return {_mm512_broadcast_i32x4(moved)};
}

template <unsigned kBits>
inline Levels unpack(Ints word, unsigned position, const LevelTable& table) {
    if (kBits == 8) return _mm512_xor_si512(word, _mm512_set1_epi8(static_cast<char>(0x80)));
    const Ints shifted = position == 0 ? word : _mm512_srli_epi16(word, kBits * position);
#if defined(__AVX512VBMI__)
    return _mm512_permutexvar_epi8(shifted, table.levels);
#else
    const Ints codes = _mm512_and_si512(shifted, _mm512_set1_epi8((1 << kBits) - 1));
    return _mm512_shuffle_epi8(table.levels, codes);
#endif
}

inline Codes broadcast_codes(const std::int8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    Codes codes = _mm512_set1_epi32(four);
    keep_in_register(codes);
    return codes;
}

inline Ints dot_add(Ints sums, Levels levels, Codes codes) {
    return _mm512_dpbusd_epi32(sums, levels, codes);
}

}  // namespace
}  // namespace secondpass
