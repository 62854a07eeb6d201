#include "gates.h"

#include <algorithm>
#include <cstring>

namespace secondpass {
namespace {

// Whether both read the same codes: see Rows.
bool rounds_alike(const Weight& a, const Weight& b) {
    return a.K == b.K && a.group_size == b.group_size && a.bits == b.bits && a.layout == b.layout &&
           a.rule == b.rule && std::memcmp(a.levels, b.levels, kMaxLevels) == 0;
}

// `count` panels from `first` on, all of whose rows count.
Weight some_panels(Weight weight, std::size_t first, std::size_t count) {
    weight.words += first * words_per_row(weight) * kPanel;
    weight.scale += first * groups_of(weight) * kPanel;
    weight.N = count * kPanel;
    return weight;
}

void copy_rows(const Weight& weight, const Rows& from, std::size_t count, const Rows& to) {
    std::memcpy(to.codes, from.codes, count * padded_columns(weight));
    std::memcpy(to.step, from.step, count * sizeof(float));
    std::memcpy(to.start, from.start, count * groups_of(weight) * sizeof(std::int32_t));
}

}  // namespace

Gates::Gates(const std::array<ProjectionPlan, kGates>& plans) : plans_(plans) {
    for (std::size_t gate = 0; gate < kGates; ++gate) {
        alike_[gate] = 0;
        while (!rounds_alike(weight(alike_[gate]), weight(gate))) ++alike_[gate];
        most_rows_ = std::min(most_rows_, rows_together(weight(gate)));
    }
}

void Gates::require(GateRows& rows, std::size_t count) const {
    for (std::size_t gate = 0; gate < kGates; ++gate)
        if (alike_[gate] == gate) rows[gate].require(weight(gate), count);
}

void Gates::require(BlockScratch& scratch) const {
    for (std::size_t gate = 0; gate < kGates; ++gate) scratch.require(weight(gate));
}

// Rounded apart and then copied: `quantize` may write beyond a row, where another thread's may be.
void Gates::round(const Kernels& kernels, const float* const* x, std::size_t count,
                  const GateRows& rows, std::size_t first,
                  const BlockScratch& scratch) const noexcept {
    for (std::size_t gate = 0; gate < kGates; ++gate) {
        if (alike_[gate] != gate) continue;
        const Weight& w = weight(gate);
        for (std::size_t r = 0; r < count; ++r)
            kernels.quantize(
                {w, x[r], 1, nullptr, from_row(w, scratch.rows(), r), scratch.line()});
        copy_rows(w, scratch.rows(), count, from_row(w, rows[gate].rows(), first));
    }
}

void Gates::multiply(const Kernels& kernels, const GateRows& rows, const Piece& piece,
                     const GateSums& sums, const BlockScratch& scratch) const noexcept {
    for (std::size_t gate = 0; gate < kGates; ++gate) {
        const Weight& w = weight(gate);
        const float* bias = plans_[gate].bias.data();
        LinearArgs args{};
        args.weight = some_panels(w, piece.first_panel, piece.panels);
        args.rows = from_row(w, rows[alike_[gate]].rows(), piece.first_row);
        args.R = piece.rows;
        args.bias = bias == nullptr ? nullptr : bias + piece.first_panel * kPanel;
        args.y = sums.y + gate * sums.gate_stride;
        args.y_stride = sums.row_stride;
        args.tables = scratch.tables();
        args.has_tables = gate > 0 && alike_[gate] == alike_[gate - 1];
        kernels.linear(args);
    }
}

}  // namespace secondpass
