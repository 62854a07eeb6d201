// The best word sequences of a lattice under its own scores and a LM's, wave by wave. Knows no model: it
// says what to score, and is told. quantized_lm/lattice/search.py says how and why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

#include "word_prefixes.h"

namespace secondpass {

// What keeps a search from being exact.
enum Cut : unsigned {
    kCutBeam = 1,
    kCutOrder = 2,
    kCutPatience = 4,
    kCutLmSteps = 8,
    kCutArcs = 16,
    kCutTokens = 32,
};

struct SearchLimits {
    std::size_t num_best;
    std::size_t seeds;
    std::int32_t order;  // 0 merges nothing
    double beam;
    std::size_t patience;
    std::size_t max_lm_steps;
    std::size_t max_arcs;
};

// The LM's tokens of each word: those of word w are tokens[first[w]] to tokens[first[w + 1] - 1].
struct Pieces {
    std::vector<std::int32_t> first;
    std::vector<std::int32_t> tokens;
};

struct Reading {
    double lm_scale;
    std::int32_t num_context;  // nodes 1.. of the LM's tree; the words start from the last one
    std::int32_t deepest;      // most tokens of context and sequence, `</s>` not counted
    bool is_final;             // whether `</s>` is scored
};

struct Found {
    std::int32_t prefix;
    double total;
    double log_prob;
};

class LatticeSearch {
public:
    LatticeSearch(LatticeArcs arcs, Pieces pieces, const SearchLimits& limits, const Reading& reading);

    // Says in parents() and tokens() what to score next. False once the search is over.
    bool next_wave();
    // Takes the answer, one number for each of tokens().
    void learn(const float* log_prob);
    void stop();

    bool is_over() const;  // never between a wave and its answer
    std::int32_t first_seed() const { return first_seed_; }  // the best by the lattice; kNone before there is one
    unsigned cuts() const { return cuts_; }
    const std::vector<Found>& found() const { return found_; }  // best first
    const std::vector<std::int32_t>& parents() const { return parents_; }
    const std::vector<std::int32_t>& tokens() const { return tokens_; }
    std::size_t num_run() const { return num_run_; }
    std::size_t num_nodes() const { return num_nodes_; }
    // Prefixes from here on are the lattice's alone: the search has not met them.
    std::size_t num_met() const { return met_.size(); }
    double log_prob(std::int32_t prefix) const { return met_[static_cast<std::size_t>(prefix)].log_prob; }
    WordPrefixes& lattice() { return lattice_; }
    const WordPrefixes& lattice() const { return lattice_; }

private:
    struct Met {  // what is known of a prefix
        std::int32_t node = 0;        // of the LM's tree, where it stands so far
        std::int32_t num_tokens = 0;  // on the path to there, the context's counted
        std::int32_t num_words = 0;
        std::int32_t rest = 0, rest_end = 0;  // pieces of its last word that are still to come
        double log_prob = 0.0;                // of the pieces so far
        bool is_grown = false;
        bool is_late = false;                 // could not be the best when it was met
    };
    struct Growth {  // a prefix in a wave, and where in the wave its numbers are
        std::int32_t prefix;
        std::size_t rest, rest_end;
        std::ptrdiff_t end;  // of `</s>`, kNone where it is not scored
        std::size_t child, child_end;
        double end_score;  // kImpossible unless it is complete, and not merged into another as such
    };
    using Heap = std::priority_queue<std::pair<double, std::int32_t>>;  // expected total, minus the prefix

    void start();
    void want_all();
    void grow_seeds(const std::vector<std::int32_t>& ends);
    void grow_beam();
    void grow(std::int32_t prefix);
    std::int32_t ask(std::int32_t parent, std::int32_t token);
    void learn(const Growth& growth, const float* log_prob);
    void guess();
    void queue(std::int32_t prefix);
    void keep_to_limits();
    bool is_searched() const;
    double floor(std::size_t count) const;
    bool can_win(std::int32_t prefix, double floor) const;
    bool fits(std::int32_t prefix);
    Met& met(std::int32_t prefix) { return met_[static_cast<std::size_t>(prefix)]; }
    const Met& met(std::int32_t prefix) const { return met_[static_cast<std::size_t>(prefix)]; }

    WordPrefixes lattice_;
    Pieces pieces_;
    SearchLimits limits_;
    Reading reading_;
    std::vector<Met> met_;
    std::vector<Heap> open_;  // by words
    std::vector<std::int32_t> late_;  // cannot be the best, and are not queued yet
    std::vector<Growth> wave_;
    std::vector<std::int32_t> parents_, tokens_;
    std::vector<std::int32_t> children_;    // of the wave's prefixes
    std::vector<std::ptrdiff_t> asked_;     // where the first piece of each is; kNone without pieces
    std::vector<std::pair<std::int32_t, std::size_t>> places_;  // of first pieces of one prefix
    std::vector<bool> is_run_;              // by node
    std::vector<double> word_nats_;         // what words have cost so far
    std::vector<std::size_t> word_count_;
    std::vector<Found> found_;
    std::int32_t next_node_;
    std::int32_t first_seed_ = kNone;
    std::size_t wanted_ = 1;  // the best first; then all
    std::size_t num_run_ = 0, num_nodes_ = 0;
    std::size_t better_at_ = 0;  // LM steps when the last of the wanted sequences got better
    unsigned cuts_ = 0;
    bool is_seeded_ = false;
};

}  // namespace secondpass
