// The kernels, written once and compiled once per instruction set (CMakeLists.txt says how).
//
// A panel of 64 weight rows is unpacked block by block into an L1-sized buffer, and each block is
// multiplied with every row of x while it is hot. Every y[m, n] is one accumulator that takes
// k in ascending order, whatever the tile: a row gives the same bits alone and in any batch.
#include SECONDPASS_VEC_HEADER

#include "kernels.h"
#include "unpack.h"

namespace secondpass {
namespace {

// Vectors side by side in a tile of kRows rows: as many as the accumulators allow.
constexpr int vectors_for(int rows) {
    int vectors = static_cast<int>(kPanel / kLanes);
    while (vectors > 1 && rows * vectors > kAccumulators) vectors /= 2;
    return vectors;
}

// One block of one panel against some rows of x.
//   block (depth, 64)      float32
//   x     (rows, depth)    float32, rows x_stride apart
//   c     (rows, 64)       float32, rows c_stride apart: added to unless is_first
struct TileArgs {
    const float* block;
    std::size_t depth;
    const float* x;
    std::size_t x_stride;
    float* c;
    std::size_t c_stride;
    bool is_first;
};

template <int kRows, int kVectors>
inline void multiply_tile(const TileArgs& a, std::size_t column) {
    Vec sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v)
            sums[r][v] = a.is_first ? broadcast(0.0f)
                                    : load(a.c + r * a.c_stride + column + v * kLanes);
    const float* weights = a.block + column;
    for (std::size_t k = 0; k < a.depth; ++k, weights += kPanel) {
        Vec w[kVectors];
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Vec x = broadcast(a.x[r * a.x_stride + k]);
#pragma GCC unroll 64
            for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(x, w[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v)
            store(a.c + r * a.c_stride + column + v * kLanes, sums[r][v]);
}

template <int kRows>
inline void multiply_rows(const TileArgs& a) {
    constexpr int kVectors = vectors_for(kRows);
    for (std::size_t column = 0; column < kPanel; column += kVectors * kLanes)
        multiply_tile<kRows, kVectors>(a, column);
}

// As multiply_rows<rows>, for 1 <= rows <= kRows.
template <int kRows>
inline void multiply_remainder(const TileArgs& a, std::size_t rows) {
    if constexpr (kRows > 1) {
        if (rows < static_cast<std::size_t>(kRows)) return multiply_remainder<kRows - 1>(a, rows);
    }
    multiply_rows<kRows>(a);
}

// c[m, n] = sum over k of weight[64 * panel + n, k] * x[m, k] for all M rows and 64 columns.
void multiply_panel(const Weight& weight, std::size_t panel, const float* x, std::size_t M,
                    float* c, std::size_t c_stride) {
    alignas(64) float block[kBlock * kPanel];
    for (std::size_t begin = 0; begin < weight.K; begin += kBlock) {
        const std::size_t end = begin + kBlock < weight.K ? begin + kBlock : weight.K;
        unpack(weight, panel, begin, end, block);
        for (std::size_t m = 0; m < M; m += kTileRows) {
            const TileArgs args{block,    end - begin,      x + m * weight.K + begin,
                                weight.K, c + m * c_stride, c_stride,
                                begin == 0};
            multiply_remainder<kTileRows>(args, M - m < kTileRows ? M - m : kTileRows);
        }
    }
}

void linear(const LinearArgs& a) {
    const std::size_t N = a.weight.N;
    for (std::size_t panel = 0; panel < a.weight.panels(); ++panel) {
        const std::size_t first = panel * kPanel;
        if (first + kPanel <= N) {
            multiply_panel(a.weight, panel, a.x, a.M, a.y + first, N);
            continue;
        }
        multiply_panel(a.weight, panel, a.x, a.M, a.tile, kPanel);
        for (std::size_t m = 0; m < a.M; ++m)
            for (std::size_t n = first; n < N; ++n)
                a.y[m * N + n] = a.tile[m * kPanel + n - first];
    }
}

// Compiled per instruction set although it uses no vectors: on x86 its plain float instructions run
// eight times slower while another library's AVX state is live in the thread, unless they are
// VEX-encoded (measured under torch on Zen 5).
void embed(const EmbedArgs& a) {
    for (std::size_t t = 0; t < a.T; ++t)
        dequantize_row(a.weight, static_cast<std::size_t>(a.tokens[t]), a.y + t * a.weight.K);
}

constexpr float kLowest = -3.0e38f;

// exp(x) for x <= 0, within 2 units in the last place; below -87.3 it stays at exp(-87.3), 1.2e-38.
// x = i * ln 2 + r with i an integer and |r| <= ln 2 / 2. exp(r) is the polynomial of Cephes expf
// (S. Moshier, public domain); 2^i is made from its exponent bits.
inline Vec exponential(Vec x) {
    x = maximum(x, broadcast(-87.3f));
    // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the lowest bits.
    const Vec magic = broadcast(12582912.0f);
    const Vec shifted = multiply_add(x, broadcast(1.44269504f), magic);
    const Vec i = subtract(shifted, magic);
    // ln 2 in two parts, the first short enough that i times it is exact.
    Vec r = multiply_add(i, broadcast(-0.693359375f), x);
    r = multiply_add(i, broadcast(2.12194440e-4f), r);
    Vec p = broadcast(1.9875691500e-4f);
    p = multiply_add(p, r, broadcast(1.3981999507e-3f));
    p = multiply_add(p, r, broadcast(8.3334519073e-3f));
    p = multiply_add(p, r, broadcast(4.1665795894e-2f));
    p = multiply_add(p, r, broadcast(1.6666665459e-1f));
    p = multiply_add(p, r, broadcast(5.0000001201e-1f));
    p = add(multiply_add(multiply(p, r), r, r), broadcast(1.0f));
    const Ints power = add(shift_left(bits_of(shifted), 23), broadcast_int(0x3F800000));
    return multiply(p, vec_of(power));
}

// Takes 64 more logits of one row into its running maximum and sum.
void accumulate_exponentials(const float* logits, float& running_maximum, double& sum) {
    Vec highest = load(logits);
    for (std::size_t n = kLanes; n < kPanel; n += kLanes)
        highest = maximum(highest, load(logits + n));
    const float panel_maximum = reduce_maximum(highest);
    if (panel_maximum > running_maximum) {
        alignas(64) float factor[kLanes];
        store(factor, exponential(broadcast(running_maximum - panel_maximum)));
        sum *= static_cast<double>(factor[0]);
        running_maximum = panel_maximum;
    }
    Vec total = broadcast(0.0f);
    for (std::size_t n = 0; n < kPanel; n += kLanes)
        total = add(total, exponential(subtract(load(logits + n), broadcast(running_maximum))));
    sum += static_cast<double>(reduce_add(total));
}

void log_sum_exp(const LogSumExpArgs& a) {
    for (std::size_t m = 0; m < a.M; ++m) {
        a.maximum[m] = kLowest;
        a.sum[m] = 0.0;
    }
    std::size_t next = 0;
    for (std::size_t panel = 0; panel < a.weight.panels(); ++panel) {
        const std::size_t first = panel * kPanel;
        multiply_panel(a.weight, panel, a.x, a.M, a.tile, kPanel);
        for (; next < a.C; ++next) {
            const std::size_t c = a.by_token[next];
            const std::size_t column = static_cast<std::size_t>(a.tokens[c]) - first;
            if (column >= kPanel) break;
            const std::size_t row = static_cast<std::size_t>(a.rows[c]) - a.first_row;
            a.logit[c] = a.tile[row * kPanel + column];
        }
        for (std::size_t m = 0; m < a.M; ++m) {
            float* logits = a.tile + m * kPanel;
            // Rows that only fill the last panel add at most 63 * 1.2e-38, nothing beside a 1.
            for (std::size_t n = a.weight.N - first; n < kPanel; ++n) logits[n] = kLowest;
            accumulate_exponentials(logits, a.maximum[m], a.sum[m]);
        }
    }
}

}  // namespace

namespace SECONDPASS_ISA {
extern const Kernels kernels;
const Kernels kernels{linear, embed, log_sum_exp};
}  // namespace SECONDPASS_ISA

}  // namespace secondpass
