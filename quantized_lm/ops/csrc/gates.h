// The four matrices of an LSTM's layer that multiply the same rows.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "pieces.h"
#include "plan.h"
#include "scratch.h"

namespace secondpass {

// Rows of x as each gate reads them; gates that round alike read the same.
using GateRows = std::array<RowBuffer, kGates>;

// Where products go: those of row r and gate g from y + r * row_stride + g * gate_stride on.
struct GateSums {
    float* y;
    std::size_t row_stride;
    std::size_t gate_stride;
};

class Gates {
public:
    explicit Gates(const std::array<ProjectionPlan, kGates>& plans);

    std::size_t panels() const noexcept { return panels_of(weight(0)); }
    // Rows that `multiply` takes at most.
    std::size_t most_rows() const noexcept { return most_rows_; }

    void require(GateRows& rows, std::size_t count) const;
    void require(BlockScratch& scratch) const;

    // rows[first + r] = the codes of x[r].
    //   x (count,) pointers to rows of model_dim floats, at most kRowBlock
    void round(const Kernels& kernels, const float* const* x, std::size_t count, const GateRows& rows,
               std::size_t first, const BlockScratch& scratch) const noexcept;

    // Products and biases of a piece, in whole panels.
    //   sums at the piece's first row and panel
    void multiply(const Kernels& kernels, const GateRows& rows, const Piece& piece,
                  const GateSums& sums, const BlockScratch& scratch) const noexcept;

private:
    const Weight& weight(std::size_t gate) const noexcept { return plans_[gate].weight.weight; }

    std::array<ProjectionPlan, kGates> plans_;
    std::array<std::size_t, kGates> alike_;  // the first gate that rounds as this one does
    std::size_t most_rows_ = kRowBlock;
};

}  // namespace secondpass
