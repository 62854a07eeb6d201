// A batch's rows in the order in which an LSTM can run them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "batch.h"

namespace secondpass {

// Rows that go through all layers before more are taken: a bound on the scratch. Fewer do not stay in the
// caches any better, and make more and smaller steps.
constexpr std::size_t kLevelRows = 480;

// Rows by level: a row's parent was run by an earlier call, or its level is the one before. Rows are cut
// into chunks, and chunks into steps of one level, whose rows are children of the step's parents.
class Levels {
public:
    // Above a root there is no tree.
    struct Parent {
        const Tree* tree;
        std::int32_t slot;
    };
    // Parents [first, first + count).
    struct Step {
        std::size_t first;
        std::size_t count;
    };
    // Rows, steps and tokens [first, first + count).
    struct Chunk {
        std::size_t first_row;
        std::size_t rows;
        std::size_t first_step;
        std::size_t steps;
        std::size_t first_token;
        std::size_t tokens;
    };

    // Of a batch that was built. Throws std::bad_alloc.
    explicit Levels(const std::vector<Row>& rows);

    const std::vector<Chunk>& chunks() const noexcept { return chunks_; }
    const Step& step(std::size_t i) const noexcept { return steps_[i]; }
    const Parent& parent(std::size_t i) const noexcept { return parents_[i]; }
    // Children of parent i are rows [first_child(i), first_child(i + 1)).
    std::size_t first_child(std::size_t i) const noexcept { return first_child_[i]; }
    const Row& row(std::size_t i) const noexcept { return *rows_[i]; }
    // The different tokens of a chunk's rows, and which of them row i has.
    const std::int64_t* tokens() const noexcept { return tokens_.data(); }
    std::size_t token_of(std::size_t i) const noexcept { return token_of_[i]; }

private:
    void sort(const std::vector<Row>& rows);
    void cut(std::size_t first_row, std::size_t rows);
    void find_tokens(Chunk& chunk);

    std::vector<const Row*> rows_;
    std::vector<std::size_t> first_of_level_;
    std::vector<Chunk> chunks_;
    std::vector<Step> steps_;
    std::vector<Parent> parents_;
    std::vector<std::size_t> first_child_;
    std::vector<std::int64_t> tokens_;
    std::vector<std::size_t> token_of_;
};

}  // namespace secondpass
