// What products need besides their weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "kernels.h"
#include "questions.h"

namespace secondpass {

// The rows from `first` on.
inline Rows from_row(const Weight& weight, const Rows& rows, std::size_t first) {
    return {rows.codes + first * padded_columns(weight), rows.step + first,
            rows.start + first * groups_of(weight)};
}

// Rows of x, quantized.
class RowBuffer {
public:
    // Enough for `count` rows of this weight as well as of those before. Loses what it held.
    void require(const Weight& weight, std::size_t count) {
        codes_.require(count * padded_columns(weight));
        step_.require(count);
        start_.require(count * groups_of(weight));
    }

    Rows rows() const noexcept { return {codes_.data(), step_.data(), start_.data()}; }

private:
    Buffer<std::int8_t> codes_;
    Buffer<float> step_;
    Buffer<std::int32_t> start_;
};

// What one thread needs for a block of rows.
class BlockScratch {
public:
    // Enough for this weight as well as for those before.
    void require(const Weight& weight) {
        rows_.require(weight, kRowBlock);
        line_.require(weight.K + kPanel);
        tile_.require(kRowBlock * kPanel);
        tables_.require(table_bytes(weight));
    }

    Rows rows() const noexcept { return rows_.rows(); }
    float* line() const noexcept { return line_.data(); }
    std::uint8_t* tables() const noexcept { return tables_.data(); }
    OutputScratch output() const noexcept { return {tile_.data(), tables_.data()}; }

private:
    RowBuffer rows_;
    Buffer<float> line_;
    Buffer<float> tile_;
    Buffer<std::uint8_t> tables_;
};

}  // namespace secondpass
