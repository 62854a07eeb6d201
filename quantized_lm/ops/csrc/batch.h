// One call's work: the nodes to run as rows, and the log-probabilities to answer as questions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "questions.h"
#include "tree.h"

namespace secondpass {

// Nodes to append to a tree.
//   parents, tokens (count,) int32; a parent exists or comes earlier in the array
struct Growth {
    Tree* tree;
    const std::int32_t* parents;
    const std::int32_t* tokens;
    std::size_t count;
};

// A node to be run.
struct Row {
    Tree* tree;
    std::int32_t node;
    std::int32_t token;
    std::int32_t depth;
    std::int32_t slot;
};

// A child of a node that was run in an earlier call.
struct LateQuestion {
    const Tree* tree;
    std::int32_t slot;
    std::int32_t token;
    std::size_t answer;
};

// Rows of a tree stand together, parents first, their slots in order. Answers are numbered as the new nodes
// are, tree by tree.
class Batch {
public:
    Batch(const Growth* growths, std::size_t count);
    // Leaves the trees as they were before, unless `commit` was called.
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    // Appends the nodes and gives those that have to be run a slot. Throws std::bad_alloc.
    void build();
    // The rows were run: makes it known to their trees.
    void commit() noexcept;

    std::vector<Row> rows;
    Questions questions;
    std::vector<LateQuestion> late;

private:
    void add_rows(const Growth& growth);
    void ask(const Growth& growth, std::size_t first_row, std::size_t first_answer);

    const Growth* const growths_;
    const std::size_t count_;
    std::vector<std::size_t> sizes_;  // nodes of each tree before
    bool is_committed_ = false;
};

}  // namespace secondpass
