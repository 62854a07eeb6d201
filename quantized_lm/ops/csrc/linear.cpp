// Goes over the tiles of a product, and over those of the output layer with their log-sum-exp.
// Compiled per instruction set.
#include SECONDPASS_VEC_HEADER

#include "isa_functions.h"
#include "tile.h"
#include "vec_math.h"

namespace secondpass {
namespace {

using SECONDPASS_ISA::TileArgs;

// The tile at the beginning of x and of panel 0.
inline TileArgs first_tile(const Weight& w, const Rows& x, std::uint8_t* tables) {
    TileArgs tile{};
    tile.weight = &w;
#if defined(SECONDPASS_EVEN)
    tile.is_even = is_even(w.levels, w.bits);
#endif
    tile.groups = groups_of(w);
    tile.words_per_group = words_per_group(w);
    tile.columns = padded_columns(w);
    tile.codes = x.codes;
    tile.tables = tables;
    tile.step = x.step;
    tile.start = x.start;
    return tile;
}

inline TileArgs from_row(TileArgs tile, std::size_t r, std::size_t rows) {
    tile.rows = rows;
    tile.codes += r * tile.columns;
    tile.step += r;
    tile.start += r * tile.groups;
    return tile;
}

// What look-up needs: see LinearArgs.
struct Tables {
    std::uint8_t* memory;
    bool are_there;
};

// Calls visit(tile, first row) for every tile. What is costly to bring in stays longest: a panel of the
// weight where that is multiplied directly, the tables of rows where they are looked up.
template <typename Visit>
inline void for_each_tile(const TileArgs& first, std::size_t R, const Tables& tables, Visit visit) {
    const std::size_t panels = panels_of(*first.weight);
#if defined(SECONDPASS_LOOKUP)
    if (first.weight->layout != Layout::kDot) {
        const std::size_t most = rows_together(*first.weight);
        for (std::size_t r = 0; r < R; r += most) {
            const std::size_t rows = R - r < most ? R - r : most;
            TileArgs tile = from_row(first, r, rows);
            if (!tables.are_there)
                SECONDPASS_ISA::build_tables(tile.codes, rows, tile.columns, tables.memory);
            for (tile.panel = 0; tile.panel < panels; ++tile.panel) visit(tile, r);
        }
        return;
    }
#else
    (void)tables;
#endif
    TileArgs tile = from_row(first, 0, R);
    for (tile.panel = 0; tile.panel < panels; ++tile.panel) visit(tile, 0);
}

inline void multiply(const TileArgs& args) {
#if defined(SECONDPASS_LOOKUP)
    if (args.weight->layout != Layout::kDot) return SECONDPASS_ISA::lookup_tile(args);
#endif
#if defined(SECONDPASS_EVEN)
    if (args.is_even) return SECONDPASS_ISA::even_tile(args);
#endif
    SECONDPASS_ISA::dot_tile(args);
}

// Columns of a last panel narrower than 64 go through a tile of their own.
void finish_narrow(const LinearArgs& a, TileArgs tile, std::size_t r) {
    alignas(64) float y[kRowBlock * kPanel];
    const std::size_t first = tile.panel * kPanel;
    tile.y = y;
    tile.y_stride = kPanel;
    tile.adds = false;
    multiply(tile);
    for (std::size_t i = 0; i < tile.rows; ++i)
        for (std::size_t n = first; n < a.weight.N; ++n) {
            float* to = a.y + (r + i) * a.y_stride + n;
            *to = y[i * kPanel + n - first] + (a.adds ? *to : 0.0f);
        }
}

constexpr float kLowest = -1.0e38f;

// Running log-sum-exp of one row: in each lane, the sum of exp(logit - maximum).
struct RunningSum {
    float maximum;
    alignas(64) float sum[kLanes];
};

// Takes 64 more logits in. Comparing first spares the usual case a sum across lanes.
inline void accumulate(const float* logits, RunningSum& running) {
    Vec highest = load(logits);
    for (std::size_t n = kLanes; n < kPanel; n += kLanes)
        highest = maximum(highest, load(logits + n));
    if (any_greater(highest, broadcast(running.maximum))) {
        const float higher = reduce_maximum(highest);
        const Vec factor = fast_exponential(broadcast(running.maximum - higher));
        store(running.sum, multiply(load(running.sum), factor));
        running.maximum = higher;
    }
    const Vec maximum_so_far = broadcast(running.maximum);
    Vec total = broadcast(0.0f);
    for (std::size_t n = 0; n < kPanel; n += kLanes)
        total = add(total, fast_exponential(subtract(load(logits + n), maximum_so_far)));
    store(running.sum, add(load(running.sum), total));
}

// Answers the questions about the tile's rows in its panel.
//   question the first one of this panel or a later one
//   r        the tile's first row
void answer(const OutputArgs& a, std::size_t question, const TileArgs& tile, std::size_t r) {
    const std::size_t end = (tile.panel + 1) * kPanel;
    for (std::size_t i = question; i < a.Q; ++i) {
        const Question& q = a.questions[i];
        if (static_cast<std::size_t>(q.token) >= end) break;
        const std::size_t row = static_cast<std::size_t>(q.row);
        if (row < r || row >= r + tile.rows) continue;
        a.logit[q.answer] = a.tile[row * kPanel + static_cast<std::size_t>(q.token) % kPanel];
    }
}

}  // namespace

void SECONDPASS_ISA::linear(const LinearArgs& a) {
    const std::size_t whole = a.weight.N / kPanel;
    TileArgs first = first_tile(a.weight, a.rows, a.tables);
    first.activation = a.activation;
    first.adds = a.adds;
    first.y_stride = a.y_stride;
    for_each_tile(first, a.R, {a.tables, a.has_tables}, [&](TileArgs tile, std::size_t r) {
        tile.y = a.y + r * a.y_stride + tile.panel * kPanel;
        tile.bias = a.bias == nullptr ? nullptr : a.bias + tile.panel * kPanel;
        tile.panel < whole ? multiply(tile) : finish_narrow(a, tile, r);
    });
}

void SECONDPASS_ISA::output(const OutputArgs& a) {
    RunningSum running[kRowBlock];
    for (std::size_t r = 0; r < a.R; ++r) {
        running[r].maximum = kLowest;
        for (std::size_t lane = 0; lane < kLanes; ++lane) running[r].sum[lane] = 0.0f;
    }
    TileArgs first = first_tile(a.weight, a.rows, a.tables);
    first.y_stride = kPanel;
    std::size_t question = 0;
    for_each_tile(first, a.R, {a.tables, false}, [&](TileArgs tile, std::size_t r) {
        const std::size_t begin = tile.panel * kPanel;
        if (tile.panel == 0) question = 0;
        while (question < a.Q && static_cast<std::size_t>(a.questions[question].token) < begin)
            ++question;
        tile.y = a.tile + r * kPanel;
        multiply(tile);
        answer(a, question, tile, r);
        for (std::size_t i = r; i < r + tile.rows; ++i) {
            float* logits = a.tile + i * kPanel;
            // What only fills the last panel adds nothing.
            for (std::size_t n = a.weight.N - begin; n < kPanel; ++n) logits[n] = kLowest;
            accumulate(logits, running[i]);
        }
    });
    for (std::size_t r = 0; r < a.R; ++r)
        a.log_sum[r] = running[r].maximum + __builtin_logf(reduce_add(load(running[r].sum)));
}

float SECONDPASS_ISA::logit(const LogitArgs& a) {
    const Weight& w = a.weight;
    const std::size_t panel = a.token / kPanel;
    const std::size_t lane = a.token % kPanel;
    const std::size_t per_word = codes_per_word(w);
    const std::uint32_t* words = w.words + panel * words_per_row(w) * kPanel;
    const std::int8_t* codes = a.rows.codes + a.row * padded_columns(w);
    std::int8_t levels[kBitsPerWord];
    float y = 0.0f;
    for (std::size_t g = 0; g < groups_of(w); ++g) {
        std::int32_t sum = 0;
        for (std::size_t i = 0; i < words_per_group(w); ++i, words += kPanel, codes += per_word) {
            decode(w, word_of(w, words, lane), levels);
            for (std::size_t k = 0; k < per_word; ++k) sum += levels[k] * codes[k];
        }
        y += static_cast<float>(sum) * w.scale[(panel * groups_of(w) + g) * kPanel + lane];
    }
    return y * a.rows.step[a.row];
}

}  // namespace secondpass
