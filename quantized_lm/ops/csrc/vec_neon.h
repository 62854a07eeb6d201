// Four lanes: NEON with the dot product instructions of ARMv8.2. vec_scalar.h documents each name.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

using Vec = float32x4_t;
using Ints = uint32x4_t;

constexpr std::size_t kLanes = 4;

inline Vec load(const float* from) { return vld1q_f32(from); }
inline void store(float* to, Vec v) { vst1q_f32(to, v); }
inline Vec broadcast(float value) { return vdupq_n_f32(value); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec subtract(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec multiply(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec reciprocal(Vec v) { return vdivq_f32(broadcast(1.0f), v); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec maximum(Vec a, Vec b) { return vmaxnmq_f32(a, b); }
inline Vec minimum(Vec a, Vec b) { return vminnmq_f32(a, b); }
inline float reduce_add(Vec v) { return vaddvq_f32(v); }
inline float reduce_maximum(Vec v) { return vmaxnmvq_f32(v); }
inline Vec reduce_add_each(const Vec (&v)[kLanes]) {
    return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
}
inline bool any_greater(Vec a, Vec b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
inline Vec first_lanes(std::size_t count, Vec v, Vec other) {
    alignas(16) const std::uint32_t lanes[kLanes] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_u32(vld1q_u32(lanes), vdupq_n_u32(static_cast<std::uint32_t>(count))), v,
                     other);
}

inline Ints load(const std::uint32_t* from) { return vld1q_u32(from); }
inline void store(std::uint32_t* to, Ints v) { vst1q_u32(to, v); }
inline Ints broadcast_int(std::uint32_t value) { return vdupq_n_u32(value); }
inline Ints add(Ints a, Ints b) { return vaddq_u32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return vandq_u32(a, b); }
inline Ints maximum_unsigned(Ints a, Ints b) { return vmaxq_u32(a, b); }
inline std::uint32_t reduce_maximum_unsigned(Ints v) { return vmaxvq_u32(v); }
inline Vec to_float(Ints v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }

inline Ints bits_of(Vec v) { return vreinterpretq_u32_f32(v); }
inline Vec vec_of(Ints bits) { return vreinterpretq_f32_u32(bits); }

inline Vec times_power_of_two(Vec v, Vec i) {
    const int32x4_t exponent =
        vmaxq_s32(vaddq_s32(vcvtq_s32_f32(i), vdupq_n_s32(127)), vdupq_n_s32(0));
    return multiply(v, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
inline Vec nearest_integer(Vec v) { return vrndnq_f32(v); }

inline float highest_quad(const float* x, std::size_t count) {
    Vec highest = vdupq_n_f32(0.0f);
    for (std::size_t k = 0; k < count; k += kLanes) {
        const Vec ones = vabsq_f32(load(x + k));
        const Vec pairs = add(ones, vrev64q_f32(ones));
        highest = maximum(highest, add(pairs, vextq_f32(pairs, pairs, 2)));
    }
    return reduce_maximum(highest);
}

inline void store_codes(std::int8_t* to, Vec v) {
    const int16x4_t shorts = vmovn_s32(vcvtnq_s32_f32(v));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(shorts, shorts));
    vst1_lane_u32(reinterpret_cast<std::uint32_t*>(to), vreinterpret_u32_s8(bytes), 0);
}

constexpr int kTileRows = 4;
constexpr int kAccumulators = 16;

inline void keep_in_register(Ints& v) { asm("" : "+w"(v)); }

using Levels = int8x16_t;
inline std::int32_t level_offset(const std::int8_t*, std::size_t) { return 0; }
struct LevelTable {
    int8x16_t levels;
};
using Codes = int8x16_t;

inline LevelTable load_levels(const std::int8_t* levels, std::size_t) { return {vld1q_s8(levels)}; }

template <unsigned kBits>
inline Levels unpack(Ints word, unsigned position, const LevelTable& table) {
    const uint8x16_t bytes = vreinterpretq_u8_u32(word);
    if (kBits == 8) return vreinterpretq_s8_u8(bytes);
    const int8x16_t shift = vdupq_n_s8(static_cast<std::int8_t>(-static_cast<int>(kBits * position)));
    const uint8x16_t codes =
        vandq_u8(vshlq_u8(bytes, shift), vdupq_n_u8(static_cast<std::uint8_t>((1u << kBits) - 1)));
    return vqtbl1q_s8(table.levels, codes);
}

inline Codes broadcast_codes(const std::int8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

inline Ints dot_add(Ints sums, Levels levels, Codes codes) {
    return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(sums), levels, codes));
}

}  // namespace
}  // namespace secondpass

#include "vec_codes.h"
