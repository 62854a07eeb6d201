// What stands between two spaces of a text, and the tokens it becomes. Knows neither Python nor what a
// word is: it is told once what a chunk becomes, and repeats it. No chunk is empty. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace secondpass {

// The tokens of a chunk, of several, or of a text.
struct TokenCounts {
    std::int64_t tokens = 0;
    std::int64_t words = 0;
    std::int64_t oov = 0;  // words that hold an unknown token

    void add(const TokenCounts& more) noexcept {
        tokens += more.tokens;
        words += more.words;
        oov += more.oov;
    }
};

class WordMemo {
public:
    // Keeps at most `most_chunks`, 1 or more; the one too many makes it forget all.
    explicit WordMemo(std::size_t most_chunks);

    std::size_t size() const noexcept { return chunks_.size(); }
    bool holds(std::string_view chunk) const noexcept { return find(chunk) != nullptr; }

    // Appends the tokens of a chunk to `ids` and adds to `counts`, or returns false for a chunk that is
    // not known.
    bool append(std::string_view chunk, std::vector<std::int32_t>& ids, TokenCounts& counts) const;

    // Learns a chunk; nothing if it is known.
    void add(std::string_view chunk, const std::vector<std::int32_t>& ids, const TokenCounts& counts);

private:
    struct Chunk {
        std::size_t start;  // in store_: its bytes, then from the next whole word on its tokens
        std::size_t size;   // bytes
        TokenCounts counts;
    };
    // One place of the hash table: 0 is empty, else high bits of the hash and a number in chunks_, from 1.
    using Place = std::uint64_t;

    std::uint64_t hash_of(std::string_view chunk) const noexcept;
    const Chunk* find(std::string_view chunk) const noexcept;
    void place(std::size_t number) noexcept;

    const std::size_t most_chunks_;
    const std::uint64_t secret_;  // so that nobody can send chunks that all fall on one place
    std::vector<Place> places_;   // a power of two, at least twice as many as chunks
    std::vector<Chunk> chunks_;
    std::vector<std::int32_t> store_;
};

}  // namespace secondpass
