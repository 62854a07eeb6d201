#include "word_memo.h"

#include <algorithm>
#include <cstring>
#include <random>

namespace secondpass {
namespace {

constexpr std::size_t kFewestPlaces = 1024;
constexpr std::uint64_t kNumberBits = 0xffffffff;
constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;

std::uint64_t random_bits() {
    std::random_device device;
    return static_cast<std::uint64_t>(device()) << 32 | device();
}

// Both halves of the product: every bit of x reaches every bit of it.
std::uint64_t mixed(std::uint64_t x, std::uint64_t y) noexcept {
    const unsigned __int128 product = static_cast<unsigned __int128>(x) * y;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

template <typename Word>
std::uint64_t load(const char* bytes) noexcept {
    Word word;
    std::memcpy(&word, bytes, sizeof word);
    return word;
}

// 1 to 8 bytes, those of different chunks of one length different.
std::uint64_t last_bytes(const char* bytes, std::size_t count) noexcept {
    if (count >= 4) return load<std::uint32_t>(bytes) << 32 | load<std::uint32_t>(bytes + count - 4);
    return load<std::uint8_t>(bytes) << 16 | load<std::uint8_t>(bytes + count / 2) << 8 |
           load<std::uint8_t>(bytes + count - 1);
}

std::size_t words_of(std::size_t bytes) noexcept {
    return (bytes + sizeof(std::int32_t) - 1) / sizeof(std::int32_t);
}

}  // namespace

WordMemo::WordMemo(std::size_t most_chunks)
    : most_chunks_(most_chunks), secret_(random_bits()), places_(kFewestPlaces) {}

std::uint64_t WordMemo::hash_of(std::string_view chunk) const noexcept {
    const char* bytes = chunk.data();
    std::size_t left = chunk.size();
    std::uint64_t hash = secret_ ^ chunk.size() * kOdd;
    for (; left > 8; left -= 8, bytes += 8) hash = mixed(hash ^ load<std::uint64_t>(bytes), secret_ | 1);
    return mixed(hash ^ last_bytes(bytes, left), kOdd ^ secret_);
}

const WordMemo::Chunk* WordMemo::find(std::string_view chunk) const noexcept {
    const std::uint64_t hash = hash_of(chunk);
    for (std::size_t at = hash;; ++at) {
        const Place place = places_[at & (places_.size() - 1)];
        if (place == 0) return nullptr;
        if (((place ^ hash) & ~kNumberBits) != 0) continue;
        const Chunk& known = chunks_[(place & kNumberBits) - 1];
        if (known.size == chunk.size() && std::memcmp(store_.data() + known.start, chunk.data(), known.size) == 0)
            return &known;
    }
}

bool WordMemo::append(std::string_view chunk, std::vector<std::int32_t>& ids, TokenCounts& counts) const {
    const Chunk* known = find(chunk);
    if (known == nullptr) return false;
    const std::int32_t* tokens = store_.data() + known->start + words_of(known->size);
    for (std::int64_t t = 0; t < known->counts.tokens; ++t) ids.push_back(tokens[t]);
    counts.add(known->counts);
    return true;
}

void WordMemo::add(std::string_view chunk, const std::vector<std::int32_t>& ids, const TokenCounts& counts) {
    if (holds(chunk)) return;
    if (chunks_.size() >= most_chunks_) {
        chunks_.clear();
        store_.clear();
        std::fill(places_.begin(), places_.end(), 0);
    }
    const std::size_t start = store_.size();
    store_.resize(start + words_of(chunk.size()));
    std::memcpy(store_.data() + start, chunk.data(), chunk.size());
    store_.insert(store_.end(), ids.begin(), ids.end());
    chunks_.push_back({start, chunk.size(), counts});
    if (2 * chunks_.size() <= places_.size()) {
        place(chunks_.size() - 1);
        return;
    }
    places_.assign(2 * places_.size(), 0);
    for (std::size_t number = 0; number < chunks_.size(); ++number) place(number);
}

void WordMemo::place(std::size_t number) noexcept {
    const Chunk& chunk = chunks_[number];
    const std::uint64_t hash = hash_of({reinterpret_cast<const char*>(store_.data() + chunk.start), chunk.size});
    std::size_t at = hash & (places_.size() - 1);
    while (places_[at] != 0) at = (at + 1) & (places_.size() - 1);
    places_[at] = (hash & ~kNumberBits) | (number + 1);
}

}  // namespace secondpass
