#include "levels.h"

#include <algorithm>

namespace secondpass {
namespace {

Levels::Parent parent_of(const Row& row) {
    const std::int32_t above = row.tree->node(static_cast<std::size_t>(row.node)).parent;
    if (above < 0) return {nullptr, kNotRun};
    return {row.tree, row.tree->node(static_cast<std::size_t>(above)).slot};
}

bool is_same(const Levels::Parent& a, const Levels::Parent& b) {
    return a.tree == b.tree && a.slot == b.slot;
}

}  // namespace

Levels::Levels(const std::vector<Row>& rows) {
    sort(rows);
    std::size_t level = 0;
    for (std::size_t row = 0; row < rows.size();) {
        const std::size_t end = std::min(row + kLevelRows, rows.size());
        Chunk chunk{row, end - row, steps_.size(), 0, tokens_.size(), 0};
        while (row < end) {
            while (first_of_level_[level + 1] <= row) ++level;
            const std::size_t level_end = std::min(first_of_level_[level + 1], end);
            cut(row, level_end - row);
            row = level_end;
        }
        chunk.steps = steps_.size() - chunk.first_step;
        find_tokens(chunk);
        chunks_.push_back(chunk);
    }
    first_child_.push_back(rows.size());
}

// By level, and within a level as they were, which keeps most siblings together.
void Levels::sort(const std::vector<Row>& rows) {
    std::vector<std::size_t> level(rows.size(), 0);
    first_of_level_.assign(2, 0);
    for (std::size_t r = 0; r < rows.size(); ++r) {
        const Parent parent = parent_of(rows[r]);
        if (parent.tree != nullptr && !parent.tree->is_stored(parent.slot))
            level[r] = level[r - static_cast<std::size_t>(rows[r].slot - parent.slot)] + 1;
        if (level[r] + 2 > first_of_level_.size()) first_of_level_.push_back(0);
        ++first_of_level_[level[r] + 1];
    }
    for (std::size_t i = 1; i < first_of_level_.size(); ++i)
        first_of_level_[i] += first_of_level_[i - 1];
    std::vector<std::size_t> next(first_of_level_);
    rows_.resize(rows.size());
    for (std::size_t r = 0; r < rows.size(); ++r) rows_[next[level[r]]++] = &rows[r];
}

// Adds a step. Siblings that do not stand together have their parent named more than once.
void Levels::cut(std::size_t first_row, std::size_t rows) {
    const std::size_t first = parents_.size();
    for (std::size_t row = first_row; row < first_row + rows; ++row) {
        const Parent parent = parent_of(*rows_[row]);
        if (parents_.size() > first && is_same(parents_.back(), parent)) continue;
        parents_.push_back(parent);
        first_child_.push_back(row);
    }
    steps_.push_back({first, parents_.size() - first});
}

void Levels::find_tokens(Chunk& chunk) {
    const std::size_t end = chunk.first_row + chunk.rows;
    for (std::size_t row = chunk.first_row; row < end; ++row) tokens_.push_back(rows_[row]->token);
    const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(chunk.first_token);
    std::sort(first, tokens_.end());
    tokens_.erase(std::unique(first, tokens_.end()), tokens_.end());
    chunk.tokens = tokens_.size() - chunk.first_token;
    for (std::size_t row = chunk.first_row; row < end; ++row)
        token_of_.push_back(static_cast<std::size_t>(
            std::lower_bound(first, tokens_.end(), rows_[row]->token) - first));
}

}  // namespace secondpass
