// Int8 codes and look-up where an instruction set has nothing better than plain loops. Needs the Vec and the
// store_codes of one vector before it, so the vec_NAME.h that wants it includes it last.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secondpass {
namespace {

// As many vectors as are worth storing together: their codes, one after another.
constexpr std::size_t kCodeVectors = 1;
inline void store_codes(std::int8_t* to, const Vec (&v)[kCodeVectors]) { store_codes(to, v[0]); }

// Lane by lane, table[index % 32]; and whether that is faster than a formula.
constexpr bool kLooksUp = kLanes == 1;
inline Vec look_up(const float (&table)[32], Ints index) {
    std::uint32_t places[kLanes];
    float found[kLanes];
    store(places, index);
    for (std::size_t lane = 0; lane < kLanes; ++lane) found[lane] = table[places[lane] % 32];
    return load(found);
}

inline std::int32_t sum_codes(const std::int8_t* codes, std::size_t count) {
    std::int32_t sum = 0;
    for (std::size_t k = 0; k < count; ++k) sum += codes[k];
    return sum;
}

// Of those below 0.
inline std::int32_t sum_negative_codes(const std::int8_t* codes, std::size_t count) {
    std::int32_t sum = 0;
    for (std::size_t k = 0; k < count; ++k) sum += codes[k] < 0 ? codes[k] : 0;
    return sum;
}

}  // namespace
}  // namespace secondpass
