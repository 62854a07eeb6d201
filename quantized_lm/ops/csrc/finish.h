// What tiles of both layouts share: what is read ahead, and what becomes of integer sums. Needs a vec_NAME.h
// before it.
#pragma once

#include "tile.h"
#include "vec_math.h"

namespace secondpass {
namespace {

using Tile = SECONDPASS_ISA::TileArgs;

// Where the sums of row r start in a group, in every lane.
inline Ints first_sums(const Tile& a, std::size_t r, std::size_t group) {
    return broadcast_int(static_cast<std::uint32_t>(a.start[r * a.groups + group]));
}

// Asks for what the next panel will need at the place of these words. A panel is read by halves, two cache
// lines here, two skipped: no pattern that a CPU follows well, and a model has more weights than caches
// hold. Without it the products of a 14 MB model run at 62 % of what the instructions allow, with it at 81 %.
inline void prefetch_next(const Tile& a, const std::uint32_t* words) {
    __builtin_prefetch(words + a.groups * a.words_per_group * kPanel, 0, 2);
}

// The sum over groups up to `group`, of one vector of columns.
//   partial (kLanes,) floats: the sum over the groups before, if there are any
inline Vec scaled(Ints sums, Vec scale, std::size_t group, const float* partial) {
    const Vec y = multiply(to_float(sums), scale);
    return group == 0 ? y : add(load(partial), y);
}

template <Activation kActivation>
inline Vec activate(Vec y) {
    if (kActivation == Activation::kSquaredRelu) return squared_relu(y);
    if (kActivation == Activation::kGeluTanh) return gelu_tanh(y);
    return y;
}

// What takes the last group's sums into y: kVectors vectors from `column` on of a tile's rows.
template <int kVectors, Activation kActivation>
inline void finish_last(const Tile& a, int rows, std::size_t column, const std::uint32_t* sums,
                        const float* partial, const Vec (&scales)[kVectors]) {
    Vec bias[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
        bias[v] = a.bias == nullptr ? broadcast(0.0f) : load(a.bias + column + v * kLanes);
    const std::size_t last_group = a.groups - 1;
    const bool adds = a.adds;
    const float* steps = a.step;
    const std::size_t y_stride = a.y_stride;
    float* y = a.y + column;
    for (int r = 0; r < rows; ++r, y += y_stride) {
        const Vec step = broadcast(steps[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v, sums += kLanes, partial += kLanes) {
            Vec sum = multiply(scaled(load(sums), scales[v], last_group, partial), step);
            sum = activate<kActivation>(add(sum, bias[v]));
            if (adds) sum = add(load(y + v * kLanes), sum);
            store(y + v * kLanes, sum);
        }
    }
}

// The usual case: one group and nothing to add.
template <int kVectors>
inline void finish_plain(const Tile& a, int rows, std::size_t column, const std::uint32_t* sums,
                         const Vec (&scales)[kVectors]) {
    float* y = a.y + column;
    for (int r = 0; r < rows; ++r, y += a.y_stride) {
        const Vec step = broadcast(a.step[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v, sums += kLanes)
            store(y + v * kLanes, multiply(multiply(to_float(load(sums)), scales[v]), step));
    }
}

// Takes the sums over `group` of a tile's rows and of kVectors vectors from `column` on into y; after the
// last group y is finished. Sums come through memory: where they stay in registers up to here, GCC
// copies every one of them in every round of the loop before.
//   sums, partial (rows, kVectors * kLanes); partial keeps sums between groups
template <int kVectors>
[[gnu::noinline]] void finish(const Tile& a, int rows, std::size_t column, std::size_t group,
                              const std::uint32_t* sums, float* partial) {
    const float* scale = a.weight->scale + (a.panel * a.groups + group) * kPanel + column;
    Vec scales[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) scales[v] = load(scale + v * kLanes);
    if (group + 1 < a.groups) {
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < kVectors; ++v, sums += kLanes, partial += kLanes)
                store(partial, scaled(load(sums), scales[v], group, partial));
        return;
    }
    const bool is_plain = a.groups == 1 && a.bias == nullptr && !a.adds;
    if (is_plain && a.activation == Activation::kNone)
        return finish_plain<kVectors>(a, rows, column, sums, scales);
    switch (a.activation) {
        case Activation::kNone:
            return finish_last<kVectors, Activation::kNone>(a, rows, column, sums, partial, scales);
        case Activation::kSquaredRelu:
            return finish_last<kVectors, Activation::kSquaredRelu>(a, rows, column, sums, partial,
                                                                   scales);
        case Activation::kGeluTanh:
            return finish_last<kVectors, Activation::kGeluTanh>(a, rows, column, sums, partial,
                                                                scales);
    }
}

// Vectors side by side in a tile of `rows` rows: as many as the accumulators allow, at most 4.
constexpr int vectors_for(int rows) {
    constexpr int kWidest = kPanel / kLanes < 4 ? static_cast<int>(kPanel / kLanes) : 4;
    int vectors = kWidest;
    while (vectors > 1 && rows * vectors > kAccumulators) vectors /= 2;
    return vectors;
}

}  // namespace
}  // namespace secondpass
