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

inline Vec squared_relu(Vec x) {
    const Vec positive = maximum(x, broadcast(0.0f));
    return multiply(positive, positive);
}

}  // namespace
}  // namespace secondpass
