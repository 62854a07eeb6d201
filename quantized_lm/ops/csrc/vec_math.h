// Powers, exponential and activations, lane by lane. Needs a vec_NAME.h before it.
#pragma once

#include "kernels.h"
#include "vec_gelu.h"

namespace secondpass {
namespace {

// 2^i 2^r for an integer i up to 127 and |r| <= 1 / 2, relative error below 3e-7; 0 or next to it where i is
// below -126. The polynomial is the minimax one of 2^r, found by iteratively reweighted least squares.
inline Vec power_of_two(Vec i, Vec r) {
    Vec p = broadcast(1.327648177e-03f);
    p = multiply_add(p, r, broadcast(9.675546549e-03f));
    p = multiply_add(p, r, broadcast(5.550713465e-02f));
    p = multiply_add(p, r, broadcast(2.402212024e-01f));
    p = multiply_add(p, r, broadcast(6.931469440e-01f));
    p = multiply_add(p, r, broadcast(1.000000119e+00f));
    return times_power_of_two(p, i);
}

// 2^x for a finite x up to 127.
inline Vec power_of_two(Vec x) {
    const Vec i = nearest_integer(x);
    return power_of_two(i, subtract(x, i));
}

constexpr float kLogTwoOfE = 1.44269504f;

// exp(x) for a finite x up to 88, relative error below 4e-7 + 1e-7 |x|; 0 or next to it below -87.3.
inline Vec fast_exponential(Vec x) { return power_of_two(multiply(x, broadcast(kLogTwoOfE))); }

// exp(x), relative error below 4e-7; beyond +-87.3 it stays at exp(+-87.3), 8e37 and 1.2e-38.
// x = i * ln 2 + r with i an integer and |r| <= ln 2 / 2.
inline Vec exponential(Vec x) {
    x = minimum(maximum(x, broadcast(-87.3f)), broadcast(87.3f));
    const Vec i = nearest_integer(multiply(x, broadcast(kLogTwoOfE)));
    const Vec r = multiply_add(i, broadcast(-0.693147181f), x);
    return power_of_two(i, multiply(r, broadcast(kLogTwoOfE)));
}

inline Vec absolute(Vec x) { return vec_of(bit_and(bits_of(x), broadcast_int(0x7FFFFFFF))); }

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
// (Hendrycks and Gimpel, arXiv 1606.08415).
inline Vec gelu_by_formula(Vec x) {
    constexpr float kTwice = -2.0f * 0.7978845608f * kLogTwoOfE;
    const Vec slope = multiply_add(multiply(x, x), broadcast(0.044715f * kTwice), broadcast(kTwice));
    const Vec power = minimum(maximum(multiply(x, slope), broadcast(-126.0f)), broadcast(126.0f));
    return multiply(x, reciprocal(add(power_of_two(power), broadcast(1.0f))));
}

// The same within 1e-6 (1 + |x|); vec_gelu.h says how.
inline Vec gelu_by_table(Vec x) {
    // Added to a small number, 2^23 leaves its nearest integer in the lowest bits.
    constexpr float kLast = (kGeluPieces - 1) / kGeluPiecesPerUnit;
    const Vec a = absolute(x);
    const Ints piece = bits_of(multiply_add(minimum(a, broadcast(kLast)),
                                            broadcast(kGeluPiecesPerUnit), broadcast(0x1p23f)));
    Vec g = look_up(kGelu[3], piece);
    g = multiply_add(g, a, look_up(kGelu[2], piece));
    g = multiply_add(g, a, look_up(kGelu[1], piece));
    g = multiply_add(g, a, look_up(kGelu[0], piece));
    return multiply_add(x, broadcast(0.5f), g);
}

inline Vec gelu_tanh(Vec x) { return kLooksUp ? gelu_by_table(x) : gelu_by_formula(x); }

// 1 / (1 + exp(-x)), relative error below 4e-7 for |x| < 87, 6e-8 |x| more where multiply_add rounds twice.
// The exponential swallows NaN and infinity; 0 x makes them NaN.
inline Vec sigmoid(Vec x) {
    const Vec one = multiply_add(x, broadcast(0.0f), broadcast(1.0f));
    return reciprocal(add(exponential(subtract(broadcast(0.0f), x)), one));
}

// tanh(x), relative error below 4e-7; NaN for NaN and infinity. x p(x^2) / q(x^2), the minimax one up to 9,
// found as above; beyond it is 1 in float32.
inline Vec hyperbolic_tangent(Vec x) {
    const Vec one = multiply_add(x, broadcast(0.0f), broadcast(1.0f));
    x = minimum(maximum(x, broadcast(-9.0f)), broadcast(9.0f));
    const Vec z = multiply(x, x);
    Vec p = broadcast(1.335462851e-08f);
    Vec q = broadcast(7.776544066e-07f);
    p = multiply_add(p, z, broadcast(2.060905717e-05f));
    q = multiply_add(q, z, broadcast(3.285632411e-04f));
    p = multiply_add(p, z, broadcast(3.495586570e-03f));
    q = multiply_add(q, z, broadcast(2.587697655e-02f));
    p = multiply_add(p, z, broadcast(1.338102371e-01f));
    q = multiply_add(q, z, broadcast(4.671433866e-01f));
    p = multiply_add(p, z, broadcast(1.0f));
    q = multiply_add(q, z, one);
    return multiply(multiply(x, p), reciprocal(q));
}

inline Vec squared_relu(Vec x) {
    const Vec positive = maximum(x, broadcast(0.0f));
    return multiply(positive, positive);
}

}  // namespace
}  // namespace secondpass
