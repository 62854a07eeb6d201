// Compares every kernel of every instruction set this CPU has with naive arithmetic, over random shapes,
// formats, groupings and layouts. Needs no Python, so that it also runs under sanitizers and emulators.
//
//   kernel_check            prints what was compared; exit 1 and a line per difference if any
//   kernel_check --fault F  breaks what the kernels are given (scale, level, code, column, gate); must
//                           exit 1
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "isa.h"
#include "kernels.h"

using namespace secondpass;

namespace {

std::mt19937 random_bits(7);
std::string fault;
int num_compared = 0;
int num_wrong = 0;

std::size_t pick(std::size_t lowest, std::size_t highest) {
    return lowest + random_bits() % (highest - lowest + 1);
}

// Exactly as many bytes as kernels.h promises them, so that a sanitizer sees one too many.
template <typename T>
struct Array {
    explicit Array(std::size_t count, std::size_t slack_bytes = 0)
        : data(static_cast<T*>(std::aligned_alloc(
              64, (std::max<std::size_t>(count * sizeof(T) + slack_bytes, 1) + 63) / 64 * 64))) {
        std::memset(static_cast<void*>(data), 0, count * sizeof(T) + slack_bytes);
    }
    Array(Array&& other) noexcept : data(other.data) { other.data = nullptr; }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    Array& operator=(Array&&) = delete;
    ~Array() { std::free(data); }
    T& operator[](std::size_t i) const { return data[i]; }
    T* data;
};

Array<float> random_floats(std::size_t count, float outlier = 20.0f) {
    std::normal_distribution<float> normal;
    Array<float> x(count, kAlignment);
    for (std::size_t i = 0; i < count; ++i)
        x[i] = normal(random_bits) * (random_bits() % 50 == 0 ? outlier : 1.0f);
    return x;
}

void compare(const char* what, const char* where, double actual, double expected, double tolerance) {
    ++num_compared;
    const bool both_nan = std::isnan(actual) && std::isnan(expected);
    if (both_nan || std::fabs(actual - expected) <= tolerance) return;
    if (++num_wrong <= 20)
        std::printf("%s of %s is %.9g; need %.9g\n", what, where, actual, expected);
}

// A weight as formulas see it, and as kernels do.
struct Case {
    std::size_t N, K, group_size, bits;
    Layout layout;
    ActivationRule rule;
    std::vector<int> levels;
    std::vector<int> code;     // (N, K)
    std::vector<float> scale;  // (N, G)
    Array<std::uint32_t> words;
    Array<float> packed_scale;
    Array<std::int8_t> table;
    Weight weight;

    float number(std::size_t n, std::size_t k) const {
        return static_cast<float>(level(n, k)) * scale[n * groups_of(weight) + k / group_size];
    }
    int level(std::size_t n, std::size_t k) const {
        return levels[static_cast<std::size_t>(code[n * K + k])];
    }
};

std::uint32_t placed(std::uint32_t code, std::size_t p, std::size_t bits, Layout layout) {
    if (layout == Layout::kDot) return code << (8 * (p % 4) + bits * (p / 4));
    const std::size_t shift = 8 * (p / 4 % 4) + p % 4;
    if (bits == 1) return code << (shift + 4 * (p / 16));
    return (code & 1) << shift | code >> 1 << (shift + 4);
}

// Sorts the bytes of 64 words by their place in a word.
void sort_bytes(std::uint32_t* words) {
    std::uint8_t bytes[kPanel * sizeof *words];
    for (std::size_t n = 0; n < kPanel; ++n)
        for (std::size_t i = 0; i < sizeof *words; ++i)
            bytes[i * kPanel + n] = static_cast<std::uint8_t>(words[n] >> 8 * i);
    std::memcpy(words, bytes, sizeof bytes);
}

Case make_case(std::size_t bits, Layout layout, const std::vector<int>& levels) {
    const std::size_t N = pick(1, 200);
    const std::size_t K = pick(1, 300);
    std::size_t group = pick(0, 2) == 0 ? pick(1, K) : K;
    if (layout != Layout::kDot && group != K) group = std::min(K, (group + 3) / 4 * 4);
    const ActivationRule rule = bits <= 2 ? ActivationRule::kQuads : ActivationRule::kAbsmax;
    Weight w{nullptr, nullptr, nullptr, N, K, group, bits, layout, rule};
    Case c{N, K, group, bits, layout, rule, levels, {}, {},
           Array<std::uint32_t>(panels_of(w) * words_per_row(w) * kPanel),
           Array<float>(panels_of(w) * groups_of(w) * kPanel), Array<std::int8_t>(kMaxLevels), w};
    for (std::size_t i = 0; i < N * K; ++i)
        c.code.push_back(static_cast<int>(random_bits() % levels.size()));
    for (std::size_t i = 0; i < N * groups_of(w); ++i)
        c.scale.push_back(static_cast<float>(pick(0, 1000)) / 1000.0f);
    for (std::size_t n = 0; n < N; ++n) {
        for (std::size_t k = 0; k < K; ++k) {
            const int code = c.code[n * K + k];
            const int stored = bits == 8 ? levels[static_cast<std::size_t>(code)] & 255 : code;
            const std::size_t word =
                k / group * words_per_group(w) + k % group / codes_per_word(w);
            c.words[(n / kPanel * words_per_row(w) + word) * kPanel + n % kPanel] |= placed(
                static_cast<std::uint32_t>(stored), k % group % codes_per_word(w), bits, layout);
        }
        for (std::size_t g = 0; g < groups_of(w); ++g)
            c.packed_scale[(n / kPanel * groups_of(w) + g) * kPanel + n % kPanel] =
                c.scale[n * groups_of(w) + g];
    }
    if (layout == Layout::kLookupBytes)
        for (std::size_t i = 0; i < panels_of(w) * words_per_row(w); ++i)
            sort_bytes(c.words.data + i * kPanel);
    for (std::size_t i = 0; i < levels.size() && bits < 8; ++i)
        c.table[i] = static_cast<std::int8_t>(levels[i]);
    c.weight.words = c.words.data;
    c.weight.scale = c.packed_scale.data;
    c.weight.levels = c.table.data;
    return c;
}

void plant_fault(Case& c) {
    if (fault == "scale") c.packed_scale[0] += 0.5f;
    if (fault == "level") c.table[0] = static_cast<std::int8_t>(c.table[0] + 1);
    if (fault == "code") c.words[0] ^= 1;
    if (fault == "column") {
        const std::size_t last = (c.N - 1) / kPanel * groups_of(c.weight) * kPanel + (c.N - 1) % kPanel;
        c.packed_scale[last] = -1.0f;
    }
}

struct Quantized {
    Quantized(const Kernels& kernels, const Case& c, const float* x, std::size_t R, const Norm* norm)
        : codes(R * padded_columns(c.weight), kAlignment),
          step(R),
          start(R * groups_of(c.weight)),
          line(c.K + 16),
          rows{codes.data, step.data, start.data} {
        kernels.quantize({c.weight, x, R, norm, rows, line.data});
    }
    Array<std::int8_t> codes;
    Array<float> step;
    Array<std::int32_t> start;
    Array<float> line;
    Rows rows;
};

// The definition in quantized_lm/quant/activations.py.
float step_of(const Case& c, const float* x) {
    float absmax = 0.0f;
    float quads = 0.0f;
    for (std::size_t k = 0; k < c.K; k += 4) {
        float v[4] = {};
        for (std::size_t i = 0; i < 4 && k + i < c.K; ++i) {
            v[i] = std::fabs(x[k + i]);
            if (!(v[i] <= 0x1p100f)) return std::nanf("");
            absmax = std::max(absmax, v[i]);
        }
        quads = std::max(quads, (v[0] + v[1]) + (v[2] + v[3]));
    }
    float step = absmax / 127.0f;
    if (c.rule == ActivationRule::kQuads) step = std::max(step, quads / 253.0f);
    return step < 0x1p-100f ? 0.0f : step;
}

float product(const Case& c, const float* x, float step, std::size_t n) {
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    float sum = 0.0f;
    for (std::size_t g = 0; g < groups_of(c.weight); ++g) {
        long integers = 0;
        for (std::size_t k = g * c.group_size; k < std::min(c.K, (g + 1) * c.group_size); ++k)
            integers += step > 0.0f ? std::lrintf(x[k] * inverse) * c.level(n, k) : 0;
        const float scaled =
            static_cast<float>(integers) * c.scale[n * groups_of(c.weight) + g];
        sum = g == 0 ? scaled : sum + scaled;
    }
    return sum * step;
}

double activated(Activation activation, double y) {
    if (activation == Activation::kSquaredRelu) return y > 0 ? y * y : 0;
    if (activation == Activation::kGeluTanh)
        return 0.5 * y * (1 + std::tanh(std::sqrt(2 / M_PI) * (y + 0.044715 * y * y * y)));
    return y;
}

void check_products(const Kernels& kernels, Case& c, const char* where) {
    const std::size_t R = pick(1, kRowBlock);
    const Array<float> x = random_floats(R * c.K);
    const std::size_t odd_row = pick(0, R - 1);
    if (pick(0, 4) == 0) std::fill(x.data + odd_row * c.K, x.data + (odd_row + 1) * c.K, 0.0f);
    if (pick(0, 9) == 0) x[odd_row * c.K + pick(0, c.K - 1)] = INFINITY;
    std::vector<float> expected(R * c.N);
    const Quantized q(kernels, c, x.data, R, nullptr);
    for (std::size_t r = 0; r < R; ++r) {
        const float step = step_of(c, x.data + r * c.K);
        compare("step", where, q.step[r], step, 0);
        for (std::size_t n = 0; n < c.N; ++n)
            expected[r * c.N + n] = product(c, x.data + r * c.K, step, n);
    }
    plant_fault(c);
    const Array<std::uint8_t> tables(table_bytes(c.weight));
    const Array<float> y(R * c.N);
    kernels.linear(
        {c.weight, q.rows, R, nullptr, Activation::kNone, false, y.data, c.N, tables.data});
    for (std::size_t i = 0; i < R * c.N; ++i) compare("linear", where, y[i], expected[i], 0);
    const std::size_t few = std::min(R, rows_together(c.weight));
    for (const bool has_tables : {false, true})
        kernels.linear({c.weight, q.rows, few, nullptr, Activation::kNone, has_tables, y.data, c.N,
                        tables.data, has_tables});
    for (std::size_t i = 0; i < few * c.N; ++i)
        compare("linear, twice", where, y[i], 2 * expected[i], 0);

    const auto activation = static_cast<Activation>(pick(0, 2));
    const Array<float> bias = random_floats(padded_rows(c.weight), 1.0f);
    const Array<float> before = random_floats(R * c.N, 1.0f);
    std::memcpy(y.data, before.data, R * c.N * sizeof(float));
    kernels.linear({c.weight, q.rows, R, bias.data, activation, true, y.data, c.N, tables.data});
    for (std::size_t i = 0; i < R * c.N; ++i) {
        const double sum = activated(activation, expected[i] + bias[i % c.N]);
        compare("finished linear", where, y[i], sum + before[i], 4e-6 * (1 + std::fabs(sum)));
    }

    std::vector<Question> questions;
    for (std::size_t i = 0; i < 2 * R; ++i)
        questions.push_back({static_cast<std::int32_t>(pick(0, c.N - 1)),
                             static_cast<std::int32_t>(i / 2), static_cast<std::int64_t>(i)});
    std::sort(questions.begin(), questions.end(),
              [](const Question& a, const Question& b) { return a.token < b.token; });
    const Array<float> tile(kRowBlock * kPanel);
    const Array<float> logit(2 * R);
    const Array<float> log_sum(R);
    kernels.output({c.weight, q.rows, R, questions.data(), questions.size(), tile.data, tables.data,
                    logit.data, log_sum.data});
    for (std::size_t r = 0; r < R; ++r) {
        const float* row = expected.data() + r * c.N;
        const double highest = *std::max_element(row, row + c.N);
        double sum = 0;
        for (std::size_t n = 0; n < c.N; ++n) sum += std::exp(row[n] - highest);
        const double log_sum_exp = highest + std::log(sum);
        compare("log-sum-exp", where, log_sum[r], log_sum_exp, 4e-6 * (1 + std::fabs(log_sum_exp)));
        if (!std::isnan(highest))
            compare("largest log-probability", where, std::max(highest - log_sum[r], 0.0), 0, 0);
    }
    for (const Question& ask : questions) {
        const auto row = static_cast<std::size_t>(ask.row);
        const auto token = static_cast<std::size_t>(ask.token);
        compare("gathered logit", where, logit[static_cast<std::size_t>(ask.answer)],
                expected[row * c.N + token], 0);
        compare("single logit", where, kernels.logit({c.weight, q.rows, row, token}),
                expected[row * c.N + token], 0);
    }

    const std::int64_t tokens[2] = {static_cast<std::int64_t>(pick(0, c.N - 1)), 0};
    const Array<float> rows(2 * c.K);
    kernels.embed({c.weight, tokens, 2, rows.data});
    for (std::size_t i = 0; i < 2 * c.K; ++i)
        compare("embedding", where, rows[i],
                c.number(static_cast<std::size_t>(tokens[i / c.K]), i % c.K), 0);
}

// Every piece of the range in which GELU is neither 0 nor its argument: weights of 0, and a bias that is it.
void check_gelu(const Kernels& kernels, const char* where) {
    constexpr std::size_t kCount = 640;
    const Array<std::int8_t> levels(kMaxLevels);
    Weight w{nullptr, nullptr, levels.data, kCount, 1, 1, 4, Layout::kDot, ActivationRule::kAbsmax};
    const Array<std::uint32_t> words(panels_of(w) * words_per_row(w) * kPanel);
    const Array<float> scale(kCount);
    const Array<float> bias(kCount);
    const Array<float> y(kCount);
    w.words = words.data;
    w.scale = scale.data;
    for (std::size_t i = 0; i < kCount; ++i)
        bias[i] = (static_cast<float>(i) + static_cast<float>(pick(0, 100)) / 100.0f) / 40.0f - 8.0f;
    bias[pick(0, kCount - 1)] = NAN;
    const Array<std::int8_t> codes(padded_columns(w), kAlignment);
    const Array<float> step(1);
    const Array<std::int32_t> start(1);
    kernels.linear({w, {codes.data, step.data, start.data}, 1, bias.data, Activation::kGeluTanh, false,
                    y.data, kCount, nullptr});
    for (std::size_t i = 0; i < kCount; ++i)
        compare("GELU", where, y[i], activated(Activation::kGeluTanh, bias[i]),
                1e-6 * (1 + std::fabs(bias[i])));
}

void check_norm(const Kernels& kernels, const Case& c, const char* where) {
    const std::size_t R = pick(1, 9);
    const Array<float> x = random_floats(R * c.K);
    const Array<float> gain = random_floats(c.K, 1.0f);
    const Array<float> bias = random_floats(c.K, 1.0f);
    const Norm norm{pick(0, 1) ? gain.data : nullptr, pick(0, 1) ? bias.data : nullptr, 1e-5f,
                    pick(0, 1) == 1};
    std::vector<double> expected;
    for (std::size_t r = 0; r < R; ++r) {
        const float* row = x.data + r * c.K;
        double mean = 0;
        double squares = 0;
        for (std::size_t k = 0; k < c.K; ++k) mean += row[k] / static_cast<double>(c.K);
        if (!norm.subtracts_mean) mean = 0;
        for (std::size_t k = 0; k < c.K; ++k) squares += (row[k] - mean) * (row[k] - mean);
        const double deviation = std::sqrt(squares / static_cast<double>(c.K) + norm.epsilon);
        for (std::size_t k = 0; k < c.K; ++k)
            expected.push_back((row[k] - mean) / deviation * (norm.gain ? gain[k] : 1.0f) +
                               (norm.bias ? bias[k] : 0.0f));
    }
    const Array<float> y(R * c.K);
    const Array<float> line(c.K + 16);
    kernels.norm({x.data, y.data, R, c.K, norm, line.data});
    for (std::size_t i = 0; i < R * c.K; ++i)
        compare("norm", where, y[i], expected[i], 2e-5 * (1 + std::fabs(expected[i])));

    const Quantized fused(kernels, c, x.data, R, &norm);
    const Quantized apart(kernels, c, y.data, R, nullptr);
    for (std::size_t i = 0; i < R * padded_columns(c.weight); ++i)
        compare("norm and codes", where, fused.codes[i], apart.codes[i], 0);

    const Array<float> other = random_floats(R * c.K);
    kernels.mix({y.data, other.data, R * c.K, 0.5f, -2.0f});
    for (std::size_t i = 0; i < R * c.K; ++i) {
        const double mixed = 0.5 * expected[i] - 2.0 * other[i];
        compare("mix", where, y[i], mixed, 1e-4 * (1 + std::fabs(mixed)));
    }
}

// Splits one projection into heads, and attends along random paths of what was stored.
void check_attention(const Kernels& kernels, const char* where) {
    const std::size_t dim = 2 * pick(1, 40);
    const Heads heads{pick(1, 4), dim, (dim + 15) / 16 * 16};
    const std::size_t R = pick(1, 12);
    const std::size_t all = heads.count * dim;
    const std::size_t padded = heads.count * heads.stride;
    const bool turns = pick(0, 1) == 1;
    const bool normalizes = pick(0, 1) == 1;
    const Array<float> qkv = random_floats(R * 3 * all, 1.0f);
    const Array<float> angles = random_floats(R * dim / 2, 1.0f);
    const Array<float> query(R * padded);
    const Array<float> store(R * row_floats(heads));
    Array<float> cos(R * dim / 2);
    Array<float> sin(R * dim / 2);
    std::vector<const float*> cos_rows(R), sin_rows(R), stores(R, store.data);
    std::vector<float*> stored(R);
    for (std::size_t i = 0; i < R * dim / 2; ++i) {
        cos[i] = std::cos(angles[i]);
        sin[i] = std::sin(angles[i]);
    }
    for (std::size_t r = 0; r < R; ++r) {
        cos_rows[r] = cos.data + r * dim / 2;
        sin_rows[r] = sin.data + r * dim / 2;
        stored[r] = store.data + r * row_floats(heads);
    }
    kernels.split({qkv.data, R, heads, turns ? cos_rows.data() : nullptr,
                   turns ? sin_rows.data() : nullptr, normalizes ? 1e-6f : -1.0f, query.data,
                   stored.data()});
    // kind 0: queries, 1: keys, 2: values
    const auto expected = [&](std::size_t kind, std::size_t r, std::size_t head, std::size_t i) {
        const float* x = qkv.data + r * 3 * all + kind * all + head * dim;
        if (kind == 2) return static_cast<double>(x[i]);
        double squares = 0;
        for (std::size_t j = 0; j < dim; ++j) squares += x[j] * x[j];
        const double root = std::sqrt(squares / static_cast<double>(dim) + 1e-6);
        const double factor = normalizes ? 1 / root : 1;
        if (!turns) return factor * x[i];
        const std::size_t half = dim / 2;
        const double angle = angles[r * half + i % half];
        return factor * (i < half ? x[i] * std::cos(angle) - x[i + half] * std::sin(angle)
                                  : x[i - half] * std::sin(angle) + x[i] * std::cos(angle));
    };
    for (std::size_t r = 0; r < R; ++r)
        for (std::size_t h = 0; h < heads.count; ++h)
            for (std::size_t i = 0; i < heads.stride; ++i) {
                const std::size_t at = h * heads.stride + i;
                const auto want = [&](std::size_t kind) {
                    return i < dim ? expected(kind, r, h, i) : 0.0;
                };
                compare("query", where, query[r * padded + at], want(0), 1e-5);
                compare("key", where, stored[r][at], want(1), 1e-5);
                compare("value", where, stored[r][padded + at], want(2), 1e-5);
            }

    std::vector<std::vector<std::int32_t>> paths(R);
    std::vector<const std::int32_t*> path(R);
    std::vector<std::size_t> length(R);
    std::size_t longest = 0;
    for (std::size_t r = 0; r < R; ++r) {
        for (std::size_t j = 0; j < R; ++j)
            if (pick(0, 1) || j == r) paths[r].push_back(static_cast<std::int32_t>(j));
        path[r] = paths[r].data();
        length[r] = paths[r].size();
        longest = std::max(longest, length[r]);
    }
    const Array<float> mixed(R * all);
    const Array<float> scratch(kAttendedRows * (longest + 16));
    kernels.attend({query.data, R, heads, stores.data(), path.data(), length.data(), mixed.data,
                    scratch.data});
    for (std::size_t r = 0; r < R; ++r)
        for (std::size_t h = 0; h < heads.count; ++h) {
            std::vector<double> share;
            double total = 0;
            for (const std::int32_t j : paths[r]) {
                double score = 0;
                for (std::size_t i = 0; i < dim; ++i)
                    score += expected(0, r, h, i) * expected(1, static_cast<std::size_t>(j), h, i);
                share.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
                total += share.back();
            }
            for (std::size_t i = 0; i < dim; ++i) {
                double sum = 0;
                for (std::size_t p = 0; p < share.size(); ++p)
                    sum += share[p] / total *
                           expected(2, static_cast<std::size_t>(paths[r][p]), h, i);
                compare("attention", where, mixed[r * all + h * dim + i], sum, 2e-5);
            }
        }
}

// The elements of a step, which lie apart as in an engine: gates, states, and rows of each.
void check_cell(const Kernels& kernels, const char* where) {
    const std::size_t R = pick(1, 9);
    const std::size_t count = pick(1, 130);
    const std::size_t stride = padded_state(count);
    const Array<float> input = random_floats(R * 4 * stride);
    const Array<float> recurrent = random_floats(R * 4 * stride);
    const Array<float> above = random_floats(R * 2 * stride, 1.0f);
    const Array<float> state(R * 2 * stride);
    const std::size_t bad = pick(0, R * count - 1);
    const std::size_t bad_gate = pick(0, 3);
    const bool has_bad = pick(0, 2) == 0;
    if (has_bad)
        input[(bad / count * 4 + bad_gate) * stride + bad % count] = pick(0, 1) ? NAN : -INFINITY;
    std::vector<const float*> inputs, recurrents, aboves;
    std::vector<float*> states;
    for (std::size_t r = 0; r < R; ++r) {
        inputs.push_back(input.data + r * 4 * stride);
        recurrents.push_back(recurrent.data + r * 4 * stride);
        aboves.push_back(above.data + r * 2 * stride);
        states.push_back(state.data + r * 2 * stride);
    }
    kernels.cell({R, count, inputs.data(), stride, recurrents.data(), stride, aboves.data(),
                  states.data(), stride});
    if (fault == "gate") input[0] += 0.5f;  // as the formula sees it
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    for (std::size_t r = 0; r < R; ++r)
        for (std::size_t k = 0; k < count; ++k) {
            const auto gate = [&](std::size_t g) {
                return static_cast<double>(inputs[r][g * stride + k] +
                                           recurrents[r][g * stride + k]);
            };
            const double kept = sigmoid(gate(1)) * aboves[r][stride + k];
            const double added = sigmoid(gate(0)) * std::tanh(gate(2));
            const double h = sigmoid(gate(3)) * std::tanh(kept + added);
            const double error = 2e-6 * (std::fabs(kept) + std::fabs(added));
            if (has_bad && r * count + k == bad) {
                compare("bad h", where, states[r][k], NAN, 0);
                if (bad_gate != 3) compare("bad c", where, states[r][stride + k], NAN, 0);
                continue;
            }
            compare("c", where, states[r][stride + k], kept + added, error);
            compare("h", where, states[r][k], h, 2e-6 * std::fabs(h) + sigmoid(gate(3)) * error);
        }
}

std::vector<int> range(int first, int last) {
    std::vector<int> numbers;
    for (int i = first; i <= last; ++i) numbers.push_back(i);
    return numbers;
}

std::vector<int> steps(int first, int step) {
    std::vector<int> levels;
    for (int code = 0; code < 16; ++code) levels.push_back(first + step * code);
    return levels;
}

void check_instruction_set(const std::string& isa, int rounds) {
    const Kernels& kernels = kernels_of(isa);
    struct Format {
        std::size_t bits;
        std::vector<int> levels;
        bool is_additive;  // what look-up needs
    };
    const std::vector<Format> formats{
        {1, {-1, 1}, true},          {1, {127, 0}, true},         {2, {-1, 0, 1}, true},
        {2, {-3, -1, 1, 3}, true},   {2, {-128, 5, 127, 9}, false}, {2, {7}, false},
        {4, range(-8, 7), false},    {4, steps(-120, 16), false}, {4, steps(127, -17), false},
        {4, {-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127}, false},
        {4, {-128, 127, 0}, false},  {8, range(-128, 127), false}};
    for (int round = 0; round < rounds; ++round) {
        for (const Format& format : formats)
            for (const Layout layout : {Layout::kDot, Layout::kLookup, Layout::kLookupBytes}) {
                const bool looks_up = format.is_additive && layout == lookup_layout(isa);
                if (layout != Layout::kDot && !looks_up) continue;
                const std::string where = isa + ", " + std::to_string(format.bits) + " bits, layout " +
                                          std::to_string(static_cast<int>(layout));
                Case c = make_case(format.bits, layout, format.levels);
                check_norm(kernels, c, where.c_str());
                check_products(kernels, c, where.c_str());
            }
        check_gelu(kernels, isa.c_str());
        check_attention(kernels, isa.c_str());
        check_cell(kernels, isa.c_str());
    }
}

}  // namespace

int main(int argc, char** argv) {
    int rounds = 12;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (std::strcmp(argv[i], "--fault") == 0) fault = argv[i + 1];
        if (std::strcmp(argv[i], "--rounds") == 0) rounds = std::atoi(argv[i + 1]);
    }
    for (const std::string& isa : instruction_sets()) {
        const int before = num_wrong;
        check_instruction_set(isa, rounds);
        std::printf("%s: %s\n", isa.c_str(), num_wrong == before ? "right" : "WRONG");
    }
    std::printf("%d numbers compared, %d wrong\n", num_compared, num_wrong);
    return num_wrong == 0 ? 0 : 1;
}
