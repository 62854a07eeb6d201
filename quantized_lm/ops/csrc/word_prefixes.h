// The word sequences of a lattice as a tree that is grown on demand: a node is a prefix of words, and
// holds every state that the prefix can have led to, with the best score to get there. So each word
// sequence is met once, however many paths spell it, and nothing is determinized in advance.
//
// States are numbered in topological order, 0 is the start and the last one the only final state.
// Scores are added up along paths and higher is better. Knows nothing of LMs or files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <vector>

namespace secondpass {

constexpr double kImpossible = -std::numeric_limits<double>::infinity();
constexpr std::int32_t kNoWord = 0;
constexpr std::int32_t kNone = -1;

struct LatticeArcs {
    std::int32_t num_states;
    std::vector<std::int32_t> src;  // ascending
    std::vector<std::int32_t> dst;  // above src
    std::vector<std::int32_t> word;  // kNoWord, or the word's number
    std::vector<double> score;
};

// A prefix whose last arc was taken, in one of the states that it can be in.
struct Arrival {
    std::int32_t state;
    std::int32_t arc;       // the last one, kNone at the start
    std::int32_t previous;  // arrival before that arc, kNone at the start
    double score;           // of the best path; kImpossible once it was merged into another prefix
};

struct Prefix {
    std::int32_t parent;  // kNone for the empty prefix
    std::int32_t word;    // the last one
    std::int32_t depth;   // words
    std::int32_t first;   // arrivals with the last word: [first, first + count)
    std::int32_t count;
    std::int32_t end;     // arrival in the final state without further words; kNone if there is none
    std::int32_t first_child, last_child;  // [first, last) once it is grown
    bool is_grown;
};

class WordPrefixes {
public:
    explicit WordPrefixes(LatticeArcs arcs);

    // to_end[state] = the best score from there to the end, if every word counts word_score[word] more.
    std::vector<double> scores_to_end(const std::vector<double>& word_score) const;

    // What a prefix is expected to reach is measured by this from now on.
    void expect(std::vector<double> to_end) { expected_to_end_ = std::move(to_end); }

    // Appends the children of a prefix, one for each word that can follow, in the order of the words.
    // Does nothing for one that is grown.
    void grow(std::int32_t prefix);

    // The best score over what the prefix can still become, without and with what is expected.
    double bound(std::int32_t prefix) const { return best_of(prefix, to_end_); }
    double expected(std::int32_t prefix) const { return best_of(prefix, expected_to_end_); }

    // Of two prefixes that end in the same `order - 1` words, a state is kept by the one that has the
    // better score there, other_score (of the LM) added. Returns how many states lost a prefix.
    std::size_t merge(std::int32_t prefix, double other_score, std::int32_t order);

    // Up to k complete prefixes, best first, each a different word sequence. Stops once more than
    // `most_arcs` arcs in all were followed.
    std::vector<std::int32_t> best(std::size_t k, std::size_t most_arcs);

    std::vector<std::int32_t> words(std::int32_t prefix) const;
    // The arcs of the best path that ends with a complete prefix.
    std::vector<std::int32_t> path(std::int32_t prefix) const;
    double end_score(std::int32_t prefix) const;

    const Prefix& prefix(std::int32_t index) const { return prefixes_[static_cast<std::size_t>(index)]; }
    std::size_t size() const { return prefixes_.size(); }
    std::size_t num_followed() const { return num_followed_; }

private:
    struct Place {  // where a state stands in the closure that is being made
        std::int32_t arrival;
        std::uint32_t round;
    };
    struct Kept {
        double score;
        std::int32_t arrival;
    };

    double best_of(std::int32_t prefix, const std::vector<double>& to_end) const;
    std::vector<std::int32_t> close(std::int32_t prefix);
    std::uint64_t history(std::int32_t prefix, std::int32_t order) const;

    LatticeArcs arcs_;
    std::vector<std::int32_t> first_arc_;  // (num_states + 1,)
    std::vector<double> to_end_, expected_to_end_;
    std::vector<Prefix> prefixes_;
    std::vector<Arrival> arrivals_;
    std::vector<Place> places_;  // (num_states,)
    std::uint32_t round_ = 0;
    std::unordered_map<std::uint64_t, Kept> kept_;
    std::size_t num_followed_ = 0;
};

}  // namespace secondpass
