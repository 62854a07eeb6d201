// Compares the memo of chunks and the merging of prefixes with what they mean, written as maps, on random input.
// Needs no Python, so that it also runs under sanitizers and emulators.
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "prefix_merge.h"
#include "word_memo.h"

namespace secondpass {
namespace {

using Tokens = std::vector<std::int32_t>;
using Random = std::mt19937;

std::size_t below(Random& random, std::size_t end) { return random() % end; }

int failures = 0;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("%s\n", what);
    ++failures;
}

std::string random_chunk(Random& random) {
    std::string chunk;
    for (std::size_t size = 1 + below(random, 20); size > 0; --size) chunk += "ab\0\xff"[below(random, 4)];
    return chunk;
}

void check_memo(Random& random, std::size_t most_chunks, std::size_t steps) {
    WordMemo memo(most_chunks);
    std::map<std::string, Tokens> known;
    for (std::size_t step = 0; step < steps; ++step) {
        const std::string chunk = random_chunk(random);
        const auto found = known.find(chunk);
        Tokens ids{7};
        TokenCounts counts{1, 1, 1};
        // Of exactly its size on the heap, so that a sanitizer sees one byte too many.
        const std::vector<char> bytes(chunk.begin(), chunk.end());
        const std::string_view view(bytes.data(), bytes.size());
        expect(memo.append(view, ids, counts) == (found != known.end()), "a chunk is known that should not, or not");
        if (found != known.end()) {
            Tokens expected{7};
            expected.insert(expected.end(), found->second.begin(), found->second.end());
            expect(ids == expected, "a chunk has other tokens");
            expect(counts.tokens == 1 + static_cast<std::int64_t>(found->second.size()), "tokens are not counted");
            expect(counts.words == 3 && counts.oov == 4, "words are not counted");
        } else {
            expect(ids.size() == 1 && counts.tokens == 1, "an unknown chunk has tokens");
        }
        Tokens tokens(below(random, 4), static_cast<std::int32_t>(step));
        memo.add(view, tokens, {static_cast<std::int64_t>(tokens.size()), 2, 3});
        if (found == known.end()) {
            if (known.size() == most_chunks) known.clear();
            known[chunk] = tokens;
        }
        expect(memo.size() == known.size(), "the memo holds another number of chunks");
    }
}

void check_merge(Random& random) {
    const Tokens alphabet{0, 1, 255, 256, 1 << 24};
    std::vector<Tokens> sequences(below(random, 12));
    Tokens ids;
    std::vector<std::int64_t> lengths;
    for (Tokens& sequence : sequences) {
        for (std::size_t size = below(random, 6); size > 0; --size)
            sequence.push_back(alphabet[below(random, alphabet.size())]);
        ids.insert(ids.end(), sequence.begin(), sequence.end());
        lengths.push_back(static_cast<std::int64_t>(sequence.size()));
    }
    ids.shrink_to_fit();
    const Tokens stem(1 + below(random, 3), 9);
    const MergedTree tree = merge_prefixes(stem, {ids.data(), lengths.data(), lengths.size()});
    std::map<Tokens, std::int32_t> node;
    std::size_t at = 0;
    for (std::size_t s = 0; s < sequences.size(); ++s) {
        std::int32_t parent = static_cast<std::int32_t>(stem.size()) - 1;
        for (std::size_t depth = 0; depth < sequences[s].size(); ++depth, ++at) {
            const std::int32_t here = tree.path_node[at];
            const Tokens prefix(sequences[s].begin(), sequences[s].begin() + static_cast<std::ptrdiff_t>(depth) + 1);
            expect(node.emplace(prefix, here).first->second == here, "a prefix has two nodes");
            expect(tree.token.at(here) == sequences[s][depth] && tree.parent.at(here) == parent, "a node is another's");
            expect(parent < here, "a node stands before its parent");
            parent = here;
        }
        expect(tree.leaf[s] == parent, "a sequence ends elsewhere");
    }
    expect(tree.token.size() == stem.size() + node.size() && tree.parent.size() == tree.token.size(), "nodes are left");
}

}  // namespace
}  // namespace secondpass

int main() {
    using namespace secondpass;
    Random random(1);
    check_memo(random, 1, 200);
    check_memo(random, 5, 2000);
    check_memo(random, 100000, 20000);
    for (int round = 0; round < 2000; ++round) check_merge(random);
    if (failures == 0) std::printf("tokens: right\n");
    return failures == 0 ? 0 : 1;
}
