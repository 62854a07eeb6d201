#include "lattice_search.h"

#include <algorithm>

namespace secondpass {
namespace {

constexpr std::int32_t kBoundary = 0;
constexpr double kRoundingNats = 1e-3;    // log-probabilities are rounded, and may add up to a little above 0
constexpr double kNewWordNats = 6.0;      // a guess of what a word costs that the LM was not yet asked for
constexpr double kLaterPieceNats = 2.0;   // and each piece of a word after its first
constexpr std::size_t kSeedTokens = 16384;  // of a first wave that is long enough: a wave is not interrupted

}  // namespace

LatticeSearch::LatticeSearch(LatticeArcs arcs, Pieces pieces, const SearchLimits& limits, const Reading& reading)
    : lattice_(std::move(arcs)),
      pieces_(std::move(pieces)),
      limits_(limits),
      reading_(reading),
      word_nats_(pieces_.first.size() - 1, 0.0),
      word_count_(pieces_.first.size() - 1, 0),
      next_node_(reading.num_context + 1) {
    met_.emplace_back();
    met_[0].node = met_[0].num_tokens = reading.num_context;
}

bool LatticeSearch::is_over() const {
    const bool is_all = wanted_ == limits_.num_best || (late_.empty() && found_.size() >= limits_.num_best);
    return wave_.empty() && is_seeded_ && is_all && is_searched();
}

bool LatticeSearch::next_wave() {
    wave_.clear();
    parents_.clear();
    tokens_.clear();
    children_.clear();
    asked_.clear();
    while (wave_.empty()) {
        if (!is_seeded_)
            start();
        else if (!is_searched())
            grow_beam();
        else if (is_over())
            return false;
        else
            want_all();
    }
    return true;
}

void LatticeSearch::learn(const float* log_prob) {
    const double before = floor(wanted_);
    for (const Growth& growth : wave_) learn(growth, log_prob);
    num_nodes_ += tokens_.size();
    is_run_.resize(static_cast<std::size_t>(next_node_), false);
    for (const std::int32_t parent : parents_)
        if (!is_run_[static_cast<std::size_t>(parent)]) {
            is_run_[static_cast<std::size_t>(parent)] = true;
            ++num_run_;
        }
    std::sort(found_.begin(), found_.end(), [](const Found& x, const Found& y) {
        return x.total != y.total ? x.total > y.total : x.prefix < y.prefix;
    });
    if (floor(wanted_) > before) better_at_ = num_run_;
    if (!is_seeded_) {
        is_seeded_ = true;
        guess();
    }
    for (const Growth& growth : wave_)
        for (std::size_t i = growth.child; i < growth.child_end; ++i)
            if (!met(children_[i]).is_late) queue(children_[i]);
    wave_.clear();
    keep_to_limits();
}

void LatticeSearch::stop() {
    is_seeded_ = true;
    wanted_ = limits_.num_best;
    wave_.clear();
    open_.clear();
}

bool LatticeSearch::is_searched() const {
    return std::all_of(open_.begin(), open_.end(), [](const Heap& heap) { return heap.empty(); });
}

void LatticeSearch::start() {
    const std::vector<std::int32_t> ends = lattice_.best(limits_.seeds, limits_.max_arcs);
    if (!ends.empty()) first_seed_ = ends.front();
    grow_seeds(ends);
    if (wave_.empty()) grow(0);  // not one of them fits
}

// The best is found, or its patience over: what could not be the best may still be one of the others, and where
// some are missing the best by the lattice alone come next. Only now, so that to want more never loses the best.
void LatticeSearch::want_all() {
    wanted_ = limits_.num_best;
    better_at_ = num_run_;
    if (found_.size() < wanted_) grow_seeds(lattice_.best(wanted_, limits_.max_arcs));
    for (const std::int32_t prefix : late_) queue(prefix);
    late_.clear();
}

void LatticeSearch::grow_seeds(const std::vector<std::int32_t>& ends) {
    std::vector<std::int32_t> chain;
    for (const std::int32_t end : ends) {
        chain.clear();
        for (std::int32_t at = end; at != kNone; at = lattice_.prefix(at).parent) chain.push_back(at);
        // The empty prefix first: what a prefix needs is known once its parent has grown.
        for (auto at = chain.rbegin(); at != chain.rend() && fits(*at); ++at)
            if (!met(*at).is_grown) grow(*at);
        if (tokens_.size() > kSeedTokens) break;
    }
}

void LatticeSearch::grow_beam() {
    const double to_beat = floor(wanted_);
    for (std::size_t words = 0; words < open_.size(); ++words) {
        while (!open_[words].empty()) {
            const auto [expected, negative] = open_[words].top();
            open_[words].pop();
            const bool is_possible = can_win(-negative, to_beat);
            if (!is_possible || expected < to_beat - limits_.beam) {
                if (wanted_ < limits_.num_best)
                    late_.push_back(-negative);
                else if (is_possible)
                    cuts_ |= kCutBeam;
                continue;
            }
            if (fits(-negative)) grow(-negative);
            break;
        }
    }
}

double LatticeSearch::floor(std::size_t count) const {
    return found_.size() >= count ? found_[count - 1].total : kImpossible;
}

bool LatticeSearch::can_win(std::int32_t prefix, double floor) const {
    const double bound = lattice_.bound(prefix);
    if (reading_.lm_scale < 0.0) return bound > kImpossible;  // it was not merged into another since
    return bound + reading_.lm_scale * (met(prefix).log_prob + kRoundingNats) > floor;
}

bool LatticeSearch::fits(std::int32_t prefix) {
    const Met& known = met(prefix);
    if (known.num_tokens + known.rest_end - known.rest <= reading_.deepest) return true;
    cuts_ |= kCutTokens;
    return false;
}

void LatticeSearch::grow(std::int32_t prefix) {
    Met known = met(prefix);
    Growth growth{prefix, tokens_.size(), 0, kNone, children_.size(), 0, kImpossible};
    for (; known.rest < known.rest_end; ++known.rest, ++known.num_tokens)
        known.node = ask(known.node, pieces_.tokens[static_cast<std::size_t>(known.rest)]);
    growth.rest_end = tokens_.size();
    known.is_grown = true;
    met(prefix) = known;
    lattice_.grow(prefix);
    met_.resize(lattice_.size());
    const Prefix of = lattice_.prefix(prefix);
    growth.end_score = lattice_.end_score(prefix);  // which a merge may take away before the answer is there
    if (growth.end_score > kImpossible && reading_.is_final) {
        growth.end = static_cast<std::ptrdiff_t>(tokens_.size());
        ask(known.node, kBoundary);
    }
    places_.clear();
    const double to_beat = is_seeded_ ? floor(limits_.num_best) : kImpossible;
    const double to_be_best = is_seeded_ ? floor(wanted_) : kImpossible;
    for (std::int32_t child = of.first_child; child < of.last_child; ++child) {
        Met& next = met(child);
        next.log_prob = known.log_prob;  // no more than that: what is to come only takes away
        if (is_seeded_ && !can_win(child, to_beat)) continue;
        const std::size_t word = static_cast<std::size_t>(lattice_.prefix(child).word);
        next.rest = pieces_.first[word];
        next.rest_end = pieces_.first[word + 1];
        next.num_words = known.num_words + 1;
        next.num_tokens = known.num_tokens;
        next.node = known.node;
        next.is_late = is_seeded_ && !can_win(child, to_be_best);
        if (next.is_late) late_.push_back(child);
        children_.push_back(child);
        asked_.push_back(kNone);
        if (next.rest == next.rest_end) continue;
        const std::int32_t piece = pieces_.tokens[static_cast<std::size_t>(next.rest++)];
        ++next.num_tokens;
        const auto place = std::find_if(places_.begin(), places_.end(),
                                        [piece](const auto& one) { return one.first == piece; });
        const std::size_t at = place == places_.end() ? tokens_.size() : place->second;
        if (place == places_.end()) {
            places_.emplace_back(piece, at);
            ask(known.node, piece);
        }
        next.node = next_node_ - static_cast<std::int32_t>(tokens_.size() - at);
        asked_.back() = static_cast<std::ptrdiff_t>(at);
    }
    growth.child_end = children_.size();
    wave_.push_back(growth);
}

std::int32_t LatticeSearch::ask(std::int32_t parent, std::int32_t token) {
    parents_.push_back(parent);
    tokens_.push_back(token);
    return next_node_++;
}

void LatticeSearch::learn(const Growth& growth, const float* log_prob) {
    Met& known = met(growth.prefix);
    for (std::size_t at = growth.rest; at < growth.rest_end; ++at) known.log_prob += static_cast<double>(log_prob[at]);
    if (growth.end_score > kImpossible) {
        const double end = growth.end == kNone ? 0.0 : static_cast<double>(log_prob[growth.end]);
        const double total = growth.end_score + reading_.lm_scale * (known.log_prob + end);
        found_.push_back(Found{growth.prefix, total, known.log_prob + end});
    }
    for (std::size_t i = growth.child; i < growth.child_end; ++i) {
        const double nats = asked_[i] == kNone ? 0.0 : static_cast<double>(log_prob[asked_[i]]);
        met(children_[i]).log_prob = known.log_prob + nats;
        const std::size_t word = static_cast<std::size_t>(lattice_.prefix(children_[i]).word);
        const std::int32_t later = pieces_.first[word + 1] - pieces_.first[word] - 1;
        word_nats_[word] += nats - kLaterPieceNats * std::max(later, 0);
        ++word_count_[word];
    }
}

// Expects of every word the mean of what it has cost.
void LatticeSearch::guess() {
    std::vector<double> scores(word_nats_.size());
    for (std::size_t word = 0; word < scores.size(); ++word)
        scores[word] = reading_.lm_scale * (word_count_[word] == 0 ? -kNewWordNats
                                            : word_nats_[word] / static_cast<double>(word_count_[word]));
    lattice_.expect(lattice_.scores_to_end(scores));
}

void LatticeSearch::queue(std::int32_t prefix) {
    const Met& known = met(prefix);
    const std::size_t words = static_cast<std::size_t>(known.num_words);
    if (open_.size() <= words) open_.resize(words + 1);
    const double lm = reading_.lm_scale * known.log_prob;
    if (limits_.order > 0 && lattice_.merge(prefix, lm, limits_.order) > 0) cuts_ |= kCutOrder;
    const double rest = reading_.lm_scale * kLaterPieceNats * (known.rest_end - known.rest);
    const double expected = lattice_.expected(prefix) + lm - rest;
    if (expected > kImpossible && !known.is_grown) open_[words].emplace(expected, -prefix);
}

void LatticeSearch::keep_to_limits() {
    unsigned reached = 0;
    if (num_run_ - better_at_ > limits_.patience && !is_searched()) reached |= kCutPatience;
    if (num_run_ >= limits_.max_lm_steps) reached |= kCutLmSteps;
    if (lattice_.num_followed() >= limits_.max_arcs) reached |= kCutArcs;
    if (reached == 0 || is_over()) return;
    cuts_ |= reached;
    if (reached == kCutPatience)
        open_.clear();
    else
        stop();
}

}  // namespace secondpass
