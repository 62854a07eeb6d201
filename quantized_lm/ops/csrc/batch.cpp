#include "batch.h"

#include <algorithm>

namespace secondpass {
namespace {

constexpr std::int32_t kPending = -2;  // slot of a node that is about to become a row

std::size_t at(std::int32_t index) { return static_cast<std::size_t>(index); }

}  // namespace

Batch::Batch(const Growth* growths, std::size_t count) : growths_(growths), count_(count) {
    for (std::size_t i = 0; i < count; ++i) sizes_.push_back(growths[i].tree->size());
}

Batch::~Batch() {
    for (std::size_t i = 0; i < count_ && !is_committed_; ++i) {
        Tree& tree = *growths_[i].tree;
        tree.truncate(sizes_[i]);
        for (std::size_t n = 0; n < tree.size(); ++n)
            if (!tree.is_stored(tree.node(n).slot)) tree.node(n).slot = kNotRun;
    }
}

void Batch::build() {
    std::size_t answer = 0;
    for (const Growth* growth = growths_; growth != growths_ + count_; ++growth) {
        for (std::size_t i = 0; i < growth->count; ++i)
            growth->tree->append(growth->parents[i], growth->tokens[i]);
        const std::size_t first_row = rows.size();
        add_rows(*growth);
        ask(*growth, first_row, answer);
        answer += growth->count;
    }
    questions.sort_by_row(rows.size());
}

void Batch::commit() noexcept {
    for (const Row& row : rows) row.tree->add_run_nodes(1);
    is_committed_ = true;
}

// The ancestors of new nodes that were never run, themselves included, by increasing number.
void Batch::add_rows(const Growth& growth) {
    Tree& tree = *growth.tree;
    const std::size_t first = rows.size();
    for (std::size_t i = 0; i < growth.count; ++i)
        for (std::int32_t above = growth.parents[i];
             above >= 0 && tree.node(at(above)).slot == kNotRun;
             above = tree.node(at(above)).parent) {
            Node& node = tree.node(at(above));
            rows.push_back({&tree, above, node.token, node.depth, kPending});
            node.slot = kPending;
        }
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(first);
    std::sort(begin, rows.end(), [](const Row& a, const Row& b) { return a.node < b.node; });
    std::int32_t slot = static_cast<std::int32_t>(tree.run_nodes());
    for (auto row = begin; row != rows.end(); ++row, ++slot)
        row->slot = tree.node(at(row->node)).slot = slot;
    tree.reserve(rows.size() - first);
}

void Batch::ask(const Growth& growth, std::size_t first_row, std::size_t first_answer) {
    Tree& tree = *growth.tree;
    for (std::size_t i = 0; i < growth.count; ++i) {
        const std::int32_t slot = tree.node(at(growth.parents[i])).slot;
        const std::size_t answer = first_answer + i;
        if (tree.is_stored(slot))
            late.push_back({&tree, slot, growth.tokens[i], answer});
        else
            questions.add(growth.tokens[i], first_row + at(slot) - tree.run_nodes(), answer);
    }
}

}  // namespace secondpass
