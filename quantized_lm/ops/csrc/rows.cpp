// What is done to rows of x between products: norm, quantization, mixing, embedding. Compiled per
// instruction set.
#include SECONDPASS_VEC_HEADER

#include "isa_functions.h"
#include "vec_math.h"

namespace secondpass {
namespace {

// Rows are worked on in lines of whole vectors of the widest instruction set.
constexpr std::size_t kLine = 16;

inline std::size_t line_length(std::size_t K) { return ceil_divide(K, kLine) * kLine; }

// line = x, then zeros up to a whole vector.
inline void copy_to_line(const float* x, std::size_t K, float* line) {
    std::size_t k = 0;
    for (; k + kLanes <= K; k += kLanes) store(line + k, load(x + k));
    for (; k < K; ++k) line[k] = x[k];
    for (; k < line_length(K); ++k) line[k] = 0.0f;
}

// Sums side by side, because one addition waits for the one before it.
constexpr std::size_t kSums = 4;

// visit(sum, k) for each vector of a line, in turn for each of kSums sums.
template <typename Sum, typename Visit>
inline void for_each_vector(std::size_t length, Sum (&sums)[kSums], Visit visit) {
    std::size_t k = 0;
    for (; k + kSums * kLanes <= length; k += kSums * kLanes)
#pragma GCC unroll 4
        for (std::size_t i = 0; i < kSums; ++i) visit(sums[i], k + i * kLanes);
    for (; k < length; k += kLanes) visit(sums[0], k);
}

// The sum of what `visit(k)` gives for each vector of a line.
template <typename Visit>
inline float sum_of(std::size_t length, Visit visit) {
    const Vec zero = broadcast(0.0f);
    Vec sums[kSums] = {zero, zero, zero, zero};
    for_each_vector(length, sums, [&](Vec& sum, std::size_t k) { sum = add(sum, visit(k)); });
    return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

// line = norm(line); what pads it stays 0.
void norm_line(const Norm& norm, std::size_t K, float* line) {
    const std::size_t length = line_length(K);
    const float count = static_cast<float>(K);
    float mean = 0.0f;
    if (norm.subtracts_mean) {
        mean = sum_of(length, [&](std::size_t k) { return load(line + k); }) / count;
        // What pads the line is subtracted from too, and added to the squares: it is made the mean.
        for (std::size_t k = K; k < length; ++k) line[k] = mean;
    }
    const Vec offset = broadcast(mean);
    const float squares = sum_of(length, [&](std::size_t k) {
        const Vec centered = subtract(load(line + k), offset);
        store(line + k, centered);
        return multiply(centered, centered);
    });
    const Vec factor = broadcast(1.0f / __builtin_sqrtf(squares / count + norm.epsilon));
    for (std::size_t k = 0; k < length; k += kLanes) {
        Vec y = multiply(load(line + k), factor);
        if (norm.gain != nullptr) y = multiply(y, load(norm.gain + k));
        if (norm.bias != nullptr) y = add(y, load(norm.bias + k));
        store(line + k, y);
    }
    for (std::size_t k = K; k < length; ++k) line[k] = 0.0f;
}

// Magnitudes above 2^100 are left out, so that no sum of four overflows; steps below 2^-100 count as
// 0, so that no inverse does.
constexpr float kLargest = 0x1p100f;
constexpr float kSmallest = 0x1p-100f;

// Step of a line (quantized_lm/quant/activations.py is the definition).
float step_of(const float* line, std::size_t length, ActivationRule rule) {
    // Numbers >= 0 are ordered as their bits are, with infinity and NaN above all.
    const Ints zero = broadcast_int(0);
    Ints highest[kSums] = {zero, zero, zero, zero};
    for_each_vector(length, highest, [&](Ints& most, std::size_t k) {
        most = maximum_unsigned(most, bits_of(absolute(load(line + k))));
    });
    const std::uint32_t bits =
        reduce_maximum_unsigned(maximum_unsigned(maximum_unsigned(highest[0], highest[1]),
                                                 maximum_unsigned(highest[2], highest[3])));
    float absmax;
    __builtin_memcpy(&absmax, &bits, sizeof absmax);
    if (!(absmax <= kLargest)) return __builtin_nanf("");
    float step = absmax / 127.0f;
    if (rule == ActivationRule::kQuads) {
        // 253 rather than 255: rounding four numbers may add 2.
        const float quads = highest_quad(line, length) / 253.0f;
        step = quads > step ? quads : step;
    }
    return step < kSmallest ? 0.0f : step;
}

// codes = line / step, `length` of them. `codes` may lie at the beginning of the line: codes are a quarter
// as wide as floats, so writing never passes reading.
void encode(const float* line, std::size_t length, float step, std::int8_t* codes) {
    if (!(step > 0.0f)) {
        __builtin_memset(codes, 0, length);
        return;
    }
    const Vec inverse = broadcast(1.0f / step);
    std::size_t k = 0;
    for (; k + kCodeVectors * kLanes <= length; k += kCodeVectors * kLanes) {
        Vec scaled[kCodeVectors];
#pragma GCC unroll 4
        for (std::size_t v = 0; v < kCodeVectors; ++v)
            scaled[v] = multiply(load(line + k + v * kLanes), inverse);
        store_codes(codes + k, scaled);
    }
    for (; k < length; k += kLanes) store_codes(codes + k, multiply(load(line + k), inverse));
}

// Where the sum over a group starts: minus what unsigned levels or table entries add too much.
std::int32_t start_of(const Weight& w, const std::int8_t* codes, std::size_t count) {
    const std::int32_t sum = sum_codes(codes, count);
    if (w.layout == Layout::kDot) return -level_offset(w.levels, w.bits) * sum;
    std::int32_t factors = w.levels[1] - w.levels[0];
    if (w.bits == 2) factors += w.levels[2] - w.levels[0];
    return w.levels[0] * sum + factors * sum_negative_codes(codes, count);
}

// Codes of one row, in groups padded to whole words, and where their sums start. One group is written in
// place: what goes past it is where the next row will be written, or slack.
void place(const Weight& w, float* line, const float* x, float step, std::int8_t* codes,
           std::int32_t* start) {
    const std::size_t length = line_length(w.K);
    const std::size_t padded = words_per_group(w) * codes_per_word(w);
    if (w.group_size >= w.K) {
        encode(x, length, step, codes);
        if (length < padded) __builtin_memset(codes + length, 0, padded - length);
        *start = start_of(w, codes, padded);
        return;
    }
    std::int8_t* together = reinterpret_cast<std::int8_t*>(line);
    encode(x, length, step, together);
    for (std::size_t k = 0; k < w.K; k += w.group_size, codes += padded, ++start) {
        const std::size_t count = w.K - k < w.group_size ? w.K - k : w.group_size;
        __builtin_memcpy(codes, together + k, count);
        __builtin_memset(codes + count, 0, padded - count);
        *start = start_of(w, codes, count);
    }
}

}  // namespace

void SECONDPASS_ISA::norm(const NormArgs& a) {
    for (std::size_t r = 0; r < a.R; ++r) {
        copy_to_line(a.x + r * a.K, a.K, a.line);
        norm_line(a.norm, a.K, a.line);
        __builtin_memcpy(a.y + r * a.K, a.line, a.K * sizeof(float));
    }
}

void SECONDPASS_ISA::quantize(const QuantizeArgs& a) {
    const Weight& w = a.weight;
    const std::size_t length = line_length(w.K);
    const std::size_t columns = padded_columns(w);
    const std::size_t groups = groups_of(w);
    for (std::size_t r = 0; r < a.R; ++r) {
        const float* x = a.x + r * w.K;
        if (a.norm != nullptr || w.K != length) {
            copy_to_line(x, w.K, a.line);
            x = a.line;
        }
        if (a.norm != nullptr) norm_line(*a.norm, w.K, a.line);
        a.rows.step[r] = step_of(x, length, w.rule);
        place(w, a.line, x, a.rows.step[r], a.rows.codes + r * columns, a.rows.start + r * groups);
    }
}

void SECONDPASS_ISA::embed(const EmbedArgs& a) {
    const Weight& w = a.weight;
    const std::size_t per_word = codes_per_word(w);
    std::int8_t levels[kBitsPerWord];
    float* y = a.y;
    for (std::size_t t = 0; t < a.T; ++t) {
        const std::size_t n = static_cast<std::size_t>(a.tokens[t]);
        const std::size_t panel = n / kPanel;
        const std::size_t lane = n % kPanel;
        const std::uint32_t* words = w.words + panel * words_per_row(w) * kPanel;
        const float* scale = w.scale + panel * groups_of(w) * kPanel + lane;
        for (std::size_t begin = 0; begin < w.K; begin += w.group_size, scale += kPanel) {
            std::size_t left = w.K - begin < w.group_size ? w.K - begin : w.group_size;
            for (std::size_t i = 0; i < words_per_group(w); ++i, words += kPanel) {
                decode(w, word_of(w, words, lane), levels);
                const std::size_t count = left < per_word ? left : per_word;
                for (std::size_t k = 0; k < count; ++k)
                    *y++ = static_cast<float>(levels[k]) * *scale;
                left -= count;
            }
        }
    }
}

void SECONDPASS_ISA::mix(const MixArgs& a) {
    const Vec factor = broadcast(a.a);
    const Vec other_factor = broadcast(a.b);
    std::size_t i = 0;
    for (; i + kLanes <= a.count; i += kLanes)
        store(a.x + i, add(multiply(factor, load(a.x + i)),
                           multiply(other_factor, load(a.other + i))));
    for (; i < a.count; ++i) a.x[i] = a.a * a.x[i] + a.b * a.other[i];
}

}  // namespace secondpass
