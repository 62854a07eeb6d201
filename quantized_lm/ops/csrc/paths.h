// Where the rows of a batch find what their ancestors stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "batch.h"

namespace secondpass {

class Paths {
public:
    // Of a batch that was built. Throws std::bad_alloc.
    explicit Paths(const std::vector<Row>& rows);

    // Slots of row r's ancestors, root first, and its own.
    const std::int32_t* of(std::size_t r) const noexcept { return slots_.data() + start_[r]; }
    std::size_t longest() const noexcept { return longest_; }

private:
    std::vector<std::int32_t> slots_;
    std::vector<std::size_t> start_;
    std::size_t longest_ = 0;
};

// How many slots a row's path has.
inline std::size_t path_length(const Row& row) { return static_cast<std::size_t>(row.depth) + 1; }

}  // namespace secondpass
