#include "prefix_merge.h"

#include <algorithm>
#include <cstring>

namespace secondpass {
namespace {

struct Sequence {
    const std::int32_t* ids;
    std::size_t length;
    std::size_t number;
};

// So that sequences that share a prefix are neighbors.
bool stands_before(const Sequence& one, const Sequence& other) {
    const std::size_t shared = std::min(one.length, other.length);
    const int difference = shared == 0 ? 0 : std::memcmp(one.ids, other.ids, shared * sizeof(std::int32_t));
    return difference != 0 ? difference < 0 : one.length < other.length;
}

std::vector<Sequence> sorted(const Sequences& sequences) {
    std::vector<Sequence> all(sequences.count);
    const std::int32_t* ids = sequences.ids;
    for (std::size_t s = 0; s < sequences.count; ++s) {
        const auto length = static_cast<std::size_t>(sequences.lengths[s]);
        all[s] = {ids, length, s};
        ids += length;
    }
    std::sort(all.begin(), all.end(), stands_before);
    return all;
}

}  // namespace

MergedTree merge_prefixes(const std::vector<std::int32_t>& stem, const Sequences& sequences) {
    const std::vector<Sequence> all = sorted(sequences);
    std::size_t tokens = 0;
    for (const Sequence& one : all) tokens += one.length;
    MergedTree tree;
    tree.token.reserve(stem.size() + tokens);
    tree.parent.reserve(stem.size() + tokens);
    tree.leaf.resize(all.size());
    tree.path_node.resize(tokens);
    const auto add = [&tree](std::int32_t parent, std::int32_t token) {
        tree.parent.push_back(parent);
        tree.token.push_back(token);
        return static_cast<std::int32_t>(tree.token.size()) - 1;
    };
    std::int32_t base = -1;
    for (const std::int32_t token : stem) base = add(base, token);
    Sequence above{nullptr, 0, 0};
    for (const Sequence& one : all) {
        const std::size_t most = std::min(one.length, above.length);
        std::size_t depth = 0;
        while (depth < most && one.ids[depth] == above.ids[depth]) ++depth;
        std::int32_t* path = tree.path_node.data() + (one.ids - sequences.ids);
        if (depth > 0) std::copy_n(tree.path_node.data() + (above.ids - sequences.ids), depth, path);
        std::int32_t node = depth > 0 ? path[depth - 1] : base;
        for (; depth < one.length; ++depth) node = path[depth] = add(node, one.ids[depth]);
        tree.leaf[one.number] = node;
        above = one;
    }
    return tree;
}

}  // namespace secondpass
