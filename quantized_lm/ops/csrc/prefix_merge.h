// Token sequences as a tree in which those that share a prefix share its nodes. Knows nothing of text or models.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace secondpass {

// Sequences that stand one after another.
struct Sequences {
    const std::int32_t* ids;
    const std::int64_t* lengths;  // (count,)
    std::size_t count;
};

// Node 0 is the root, each node stands after its parent.
struct MergedTree {
    std::vector<std::int32_t> token;      // (nodes,)
    std::vector<std::int32_t> parent;     // (nodes,), -1 for the root
    std::vector<std::int32_t> leaf;       // (count,), the node at which each sequence ends
    std::vector<std::int32_t> path_node;  // of every token of every sequence, as they stand
};

// The stem, one token or more, is a path from the root; all sequences start from its end. Their nodes are
// numbered depth first; siblings stand in the order of their tokens' bytes in memory.
MergedTree merge_prefixes(const std::vector<std::int32_t>& stem, const Sequences& sequences);

}  // namespace secondpass
