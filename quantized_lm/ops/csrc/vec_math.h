// Exponential and activations, lane by lane. Needs a vec_NAME.h before it.
#pragma once

#include "kernels.h"

namespace secondpass {
namespace {

// exp(x), relative error below 3e-7; beyond +-87.3 it stays at exp(+-87.3), 8e37 and 1.2e-38.
// x = i * ln 2 + r with i an integer and |r| <= ln 2 / 2; the polynomial is the minimax one of exp(r),
// found by iteratively reweighted least squares.
inline Vec exponential(Vec x) {
    x = minimum(maximum(x, broadcast(-87.3f)), broadcast(87.3f));
    const Vec i = nearest_integer(multiply(x, broadcast(1.44269504f)));
    const Vec r = multiply_add(i, broadcast(-0.693147181f), x);
    Vec p = broadcast(8.297512308e-03f);
    p = multiply_add(p, r, broadcast(4.191637039e-02f));
    p = multiply_add(p, r, broadcast(1.666758209e-01f));
    p = multiply_add(p, r, broadcast(4.999888539e-01f));
    p = multiply_add(p, r, broadcast(9.999997020e-01f));
    p = multiply_add(p, r, broadcast(1.000000119e+00f));
    return times_power_of_two(p, i);
}

inline Vec absolute(Vec x) { return vec_of(bit_and(bits_of(x), broadcast_int(0x7FFFFFFF))); }

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
// (Hendrycks and Gimpel, arXiv 1606.08415).
inline Vec gelu_tanh(Vec x) {
    constexpr float kTwice = -2.0f * 0.7978845608f;
    const Vec slope = multiply_add(multiply(x, x), broadcast(0.044715f * kTwice), broadcast(kTwice));
    return multiply(x, reciprocal(add(exponential(multiply(x, slope)), broadcast(1.0f))));
}

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
