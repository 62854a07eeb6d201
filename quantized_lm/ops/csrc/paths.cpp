#include "paths.h"

#include <algorithm>

namespace secondpass {

// A row that has rows below it shares the path of one of them, of which its own is the beginning.
Paths::Paths(const std::vector<Row>& rows) {
    constexpr std::size_t kUnknown = static_cast<std::size_t>(-1);
    start_.assign(rows.size(), kUnknown);
    for (std::size_t r = rows.size(); r-- > 0;) {
        const Row& row = rows[r];
        const std::size_t length = path_length(row);
        longest_ = std::max(longest_, length);
        if (start_[r] != kUnknown) continue;
        const std::size_t first = slots_.size();
        slots_.resize(first + length);
        for (std::int32_t node = row.node; node >= 0;) {
            const Node& above = row.tree->node(static_cast<std::size_t>(node));
            slots_[first + static_cast<std::size_t>(above.depth)] = above.slot;
            if (!row.tree->is_stored(above.slot))
                start_[r - static_cast<std::size_t>(row.slot - above.slot)] = first;
            node = above.parent;
        }
    }
}

}  // namespace secondpass
