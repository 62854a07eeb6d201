#include "word_prefixes.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <queue>
#include <tuple>
#include <utility>

namespace secondpass {
namespace {

std::uint64_t mix(std::uint64_t seed, std::uint64_t value) {
    // splitmix64 (Steele, Lea and Flood, 2014).
    std::uint64_t z = seed + 0x9e3779b97f4a7c15ULL + value;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

}  // namespace

WordPrefixes::WordPrefixes(LatticeArcs arcs) : arcs_(std::move(arcs)) {
    const std::size_t num_states = static_cast<std::size_t>(arcs_.num_states);
    first_arc_.assign(num_states + 1, 0);
    for (const std::int32_t state : arcs_.src) ++first_arc_[static_cast<std::size_t>(state) + 1];
    for (std::size_t s = 0; s < num_states; ++s) first_arc_[s + 1] += first_arc_[s];
    places_.assign(num_states, Place{kNone, 0});
    to_end_ = scores_to_end({});
    expected_to_end_ = to_end_;
    arrivals_.push_back(Arrival{0, kNone, kNone, 0.0});
    prefixes_.push_back(Prefix{kNone, kNoWord, 0, 0, 1, kNone, 0, 0, false});
}

std::vector<double> WordPrefixes::scores_to_end(const std::vector<double>& word_score) const {
    std::vector<double> to_end(places_.size(), kImpossible);
    to_end.back() = 0.0;
    for (std::size_t a = arcs_.src.size(); a-- > 0;) {
        const std::size_t word = static_cast<std::size_t>(arcs_.word[a]);
        const double added = word == kNoWord || word >= word_score.size() ? 0.0 : word_score[word];
        double& best = to_end[static_cast<std::size_t>(arcs_.src[a])];
        best = std::max(best, arcs_.score[a] + added + to_end[static_cast<std::size_t>(arcs_.dst[a])]);
    }
    return to_end;
}

double WordPrefixes::best_of(std::int32_t prefix, const std::vector<double>& to_end) const {
    const Prefix& of = prefixes_[static_cast<std::size_t>(prefix)];
    double best = kImpossible;
    for (std::int32_t i = of.first; i < of.first + of.count; ++i) {
        const Arrival& arrival = arrivals_[static_cast<std::size_t>(i)];
        best = std::max(best, arrival.score + to_end[static_cast<std::size_t>(arrival.state)]);
    }
    return best;
}

// Every state that the prefix can be in, also after arcs without words; one arrival each, in the order of
// states. Arcs lead to higher states only, so a state is final in its score when it is the lowest left.
std::vector<std::int32_t> WordPrefixes::close(std::int32_t prefix) {
    const Prefix of = prefixes_[static_cast<std::size_t>(prefix)];
    std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> open;
    ++round_;
    for (std::int32_t i = of.first; i < of.first + of.count; ++i) {
        const Arrival& arrival = arrivals_[static_cast<std::size_t>(i)];
        if (arrival.score == kImpossible) continue;
        places_[static_cast<std::size_t>(arrival.state)] = {i, round_};
        open.push(arrival.state);
    }
    std::vector<std::int32_t> closed;
    while (!open.empty()) {
        const std::int32_t state = open.top();
        open.pop();
        const std::int32_t here = places_[static_cast<std::size_t>(state)].arrival;
        closed.push_back(here);
        const std::int32_t last = first_arc_[static_cast<std::size_t>(state) + 1];
        for (std::int32_t a = first_arc_[static_cast<std::size_t>(state)]; a < last; ++a) {
            const std::size_t arc = static_cast<std::size_t>(a);
            if (arcs_.word[arc] != kNoWord) continue;
            ++num_followed_;
            const double score = arrivals_[static_cast<std::size_t>(here)].score + arcs_.score[arc];
            if (score == kImpossible) continue;
            const std::int32_t next = arcs_.dst[arc];
            Place& place = places_[static_cast<std::size_t>(next)];
            if (place.round != round_) {
                place = {static_cast<std::int32_t>(arrivals_.size()), round_};
                arrivals_.push_back(Arrival{next, a, here, score});
                open.push(next);
            } else if (score > arrivals_[static_cast<std::size_t>(place.arrival)].score) {
                // Those of the prefix itself stay as they are: its bound is made of them.
                if (place.arrival < of.first + of.count) {
                    place.arrival = static_cast<std::int32_t>(arrivals_.size());
                    arrivals_.push_back(Arrival{next, a, here, score});
                } else {
                    arrivals_[static_cast<std::size_t>(place.arrival)] = Arrival{next, a, here, score};
                }
            }
        }
    }
    return closed;
}

void WordPrefixes::grow(std::int32_t prefix) {
    if (prefixes_[static_cast<std::size_t>(prefix)].is_grown) return;
    prefixes_[static_cast<std::size_t>(prefix)].is_grown = true;
    const std::vector<std::int32_t> closed = close(prefix);
    if (!closed.empty()) {
        const std::int32_t last = closed.back();
        if (arrivals_[static_cast<std::size_t>(last)].state == arcs_.num_states - 1)
            prefixes_[static_cast<std::size_t>(prefix)].end = last;
    }
    std::vector<Arrival> steps;
    for (const std::int32_t here : closed) {
        const Arrival from = arrivals_[static_cast<std::size_t>(here)];
        const std::int32_t last = first_arc_[static_cast<std::size_t>(from.state) + 1];
        for (std::int32_t a = first_arc_[static_cast<std::size_t>(from.state)]; a < last; ++a) {
            const std::size_t arc = static_cast<std::size_t>(a);
            if (arcs_.word[arc] == kNoWord) continue;
            ++num_followed_;
            const double score = from.score + arcs_.score[arc];
            if (score != kImpossible) steps.push_back(Arrival{arcs_.dst[arc], a, here, score});
        }
    }
    const auto word_of = [this](const Arrival& step) { return arcs_.word[static_cast<std::size_t>(step.arc)]; };
    // By word and state, the best first, and of equal ones the arc that comes first.
    std::stable_sort(steps.begin(), steps.end(), [&](const Arrival& x, const Arrival& y) {
        return std::tuple(word_of(x), x.state, -x.score) < std::tuple(word_of(y), y.state, -y.score);
    });
    const std::int32_t depth = prefixes_[static_cast<std::size_t>(prefix)].depth + 1;
    std::int32_t word = kNoWord;
    prefixes_[static_cast<std::size_t>(prefix)].first_child = static_cast<std::int32_t>(prefixes_.size());
    for (const Arrival& step : steps) {
        const std::int32_t first = static_cast<std::int32_t>(arrivals_.size());
        if (word_of(step) != word) {
            word = word_of(step);
            prefixes_.push_back(Prefix{prefix, word, depth, first, 0, kNone, 0, 0, false});
        } else if (arrivals_.back().state == step.state) {
            continue;
        }
        arrivals_.push_back(step);
        ++prefixes_.back().count;
    }
    prefixes_[static_cast<std::size_t>(prefix)].last_child = static_cast<std::int32_t>(prefixes_.size());
}

std::uint64_t WordPrefixes::history(std::int32_t prefix, std::int32_t order) const {
    std::uint64_t hash = 0;
    for (std::int32_t left = order - 1; left > 0 && prefix != kNone; --left) {
        const Prefix& of = prefixes_[static_cast<std::size_t>(prefix)];
        hash = mix(hash, static_cast<std::uint64_t>(of.word) + 1);
        prefix = of.parent;
    }
    return hash;
}

std::size_t WordPrefixes::merge(std::int32_t prefix, double other_score, std::int32_t order) {
    const std::uint64_t hash = history(prefix, order);
    const Prefix of = prefixes_[static_cast<std::size_t>(prefix)];
    std::size_t lost = 0;
    for (std::int32_t i = of.first; i < of.first + of.count; ++i) {
        Arrival& arrival = arrivals_[static_cast<std::size_t>(i)];
        if (arrival.score == kImpossible) continue;
        const Kept mine{arrival.score + other_score, i};
        const auto [found, is_new] = kept_.try_emplace(mix(hash, static_cast<std::uint64_t>(arrival.state)), mine);
        if (is_new || found->second.arrival == i) continue;
        ++lost;
        if (found->second.score >= mine.score) {
            arrival.score = kImpossible;
        } else {
            arrivals_[static_cast<std::size_t>(found->second.arrival)].score = kImpossible;
            found->second = mine;
        }
    }
    return lost;
}

std::vector<std::int32_t> WordPrefixes::best(std::size_t k, std::size_t most_arcs) {
    // Of equal scores completed prefixes come first, then long ones, then those met first: so a lattice
    // whose paths all score alike is followed to its end and not in its whole width. Scores that differ
    // as sums of the same numbers do are equal.
    using Item = std::tuple<double, bool, std::int32_t, std::int32_t>;
    const double step = std::ldexp(std::max(1.0, std::abs(bound(0))), -38);
    std::priority_queue<Item> open;
    const auto add = [&](double score, bool is_complete, std::int32_t prefix) {
        const std::int32_t depth = prefixes_[static_cast<std::size_t>(prefix)].depth;
        if (score != kImpossible) open.emplace(std::round(score / step), is_complete, depth, -prefix);
    };
    add(bound(0), false, 0);
    std::vector<std::int32_t> found;
    while (!open.empty() && found.size() < k && num_followed_ <= most_arcs) {
        const auto [score, is_complete, depth, negative] = open.top();
        open.pop();
        const std::int32_t prefix = -negative;
        if (is_complete) {
            found.push_back(prefix);
            continue;
        }
        grow(prefix);
        const Prefix of = prefixes_[static_cast<std::size_t>(prefix)];
        if (of.end != kNone) add(end_score(prefix), true, prefix);
        for (std::int32_t child = of.first_child; child < of.last_child; ++child)
            add(bound(child), false, child);
    }
    std::stable_sort(found.begin(), found.end(), [this](std::int32_t x, std::int32_t y) {
        return end_score(x) > end_score(y);
    });
    return found;
}

double WordPrefixes::end_score(std::int32_t prefix) const {
    const std::int32_t end = prefixes_[static_cast<std::size_t>(prefix)].end;
    return end == kNone ? kImpossible : arrivals_[static_cast<std::size_t>(end)].score;
}

std::vector<std::int32_t> WordPrefixes::words(std::int32_t prefix) const {
    std::vector<std::int32_t> words;
    for (; prefix > 0; prefix = prefixes_[static_cast<std::size_t>(prefix)].parent)
        words.push_back(prefixes_[static_cast<std::size_t>(prefix)].word);
    std::reverse(words.begin(), words.end());
    return words;
}

std::vector<std::int32_t> WordPrefixes::path(std::int32_t prefix) const {
    std::vector<std::int32_t> arcs;
    std::int32_t at = prefixes_[static_cast<std::size_t>(prefix)].end;
    for (; at != kNone && arrivals_[static_cast<std::size_t>(at)].arc != kNone;
         at = arrivals_[static_cast<std::size_t>(at)].previous)
        arcs.push_back(arrivals_[static_cast<std::size_t>(at)].arc);
    std::reverse(arcs.begin(), arcs.end());
    return arcs;
}

}  // namespace secondpass
