// WordPrefixes for Python. Arrays go in checked; what a search asks for comes out as arrays.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lattice_search.h"
#include "word_prefixes.h"

namespace secondpass {
namespace {

using namespace nb::literals;

using Ids = Array<const std::int32_t, 1>;
using Doubles = Array<const double, 1>;

LatticeArcs arcs_of(const Ids& src, const Ids& dst, const Ids& word, const Doubles& score) {
    const std::size_t count = src.shape(0);
    require(count > 0, "src is empty; need one arc or more");
    require_shape(dst, "dst", 1, count);
    require_shape(word, "word", 1, count);
    require_shape(score, "score", 1, count);
    LatticeArcs arcs{0, copy_of<std::int32_t>(src), copy_of<std::int32_t>(dst), copy_of<std::int32_t>(word),
                     copy_of<double>(score)};
    for (std::size_t a = 0; a < count; ++a) {
        require(arcs.src[a] >= (a == 0 ? 0 : arcs.src[a - 1]), "src descends; need arcs by their start");
        require(arcs.dst[a] > arcs.src[a], "an arc goes back; need states in topological order");
        require(static_cast<std::size_t>(arcs.dst[a]) <= count, "there are more states than arcs connect");
        require(arcs.word[a] >= 0, "a word is negative; need 0 for none");
        require(arcs.score[a] < std::numeric_limits<double>::infinity(), "a score is NaN or infinite");
        arcs.num_states = std::max(arcs.num_states, arcs.dst[a] + 1);
    }
    return arcs;
}

std::unique_ptr<WordPrefixes> make_word_prefixes(const Ids& src, const Ids& dst, const Ids& word,
                                                 const Doubles& score) {
    return std::make_unique<WordPrefixes>(arcs_of(src, dst, word, score));
}

void require_prefix(const WordPrefixes& prefixes, std::int32_t prefix) {
    require(prefix >= 0 && static_cast<std::size_t>(prefix) < prefixes.size(),
            "there is no prefix " + std::to_string(prefix));
}

// Grows a prefix: (its end score, child ids, their words).
nb::tuple grow(WordPrefixes& prefixes, std::int32_t prefix) {
    require_prefix(prefixes, prefix);
    prefixes.grow(prefix);
    const Prefix of = prefixes.prefix(prefix);
    std::vector<std::int32_t> children, words;
    for (std::int32_t child = of.first_child; child < of.last_child; ++child) {
        children.push_back(child);
        words.push_back(prefixes.prefix(child).word);
    }
    return nb::make_tuple(prefixes.end_score(prefix), to_numpy(std::move(children)), to_numpy(std::move(words)));
}

Pieces pieces_of(const Ids& first, const Ids& tokens, const std::vector<std::int32_t>& words) {
    const std::size_t count = first.shape(0);
    require(count > 1 && first(0) == 0, "first is no list of starts; need 0 and an end for every word");
    for (std::size_t w = 1; w < count; ++w) require(first(w) >= first(w - 1), "first descends");
    require(static_cast<std::size_t>(first(count - 1)) == tokens.shape(0), "first does not end with the tokens");
    for (const std::int32_t word : words)
        require(static_cast<std::size_t>(word) + 1 < count, "a word has no tokens; need a start for each");
    return {copy_of<std::int32_t>(first), copy_of<std::int32_t>(tokens)};
}

std::unique_ptr<LatticeSearch> make_search(const Ids& src, const Ids& dst, const Ids& word, const Doubles& score,
                                           const Ids& first_piece, const Ids& pieces, const SearchLimits& limits,
                                           const Reading& reading) {
    require(limits.num_best > 0 && limits.seeds > 0, "num_best or seeds is 0; need 1 or more");
    require(reading.num_context >= 0, "num_context is negative");
    LatticeArcs arcs = arcs_of(src, dst, word, score);
    Pieces tokens = pieces_of(first_piece, pieces, arcs.word);
    return std::make_unique<LatticeSearch>(std::move(arcs), std::move(tokens), limits, reading);
}

// (parents, tokens) of the next wave, or None.
nb::object next_wave(LatticeSearch& search) {
    bool is_wave = false;
    {
        const PythonRelease release;
        is_wave = search.next_wave();
    }
    if (!is_wave) return nb::none();
    return nb::make_tuple(to_numpy(std::vector<std::int32_t>(search.parents())),
                          to_numpy(std::vector<std::int32_t>(search.tokens())));
}

void learn(LatticeSearch& search, const Vector& log_prob) {
    require_shape(log_prob, "log_prob", 1, search.tokens().size());
    const PythonRelease release;
    search.learn(log_prob.data());
}

// (prefixes, totals, log-probabilities) of the complete sequences, best first.
nb::tuple found(const LatticeSearch& search) {
    std::vector<std::int32_t> prefixes;
    std::vector<double> totals, log_probs;
    for (const Found& one : search.found()) {
        prefixes.push_back(one.prefix);
        totals.push_back(one.total);
        log_probs.push_back(one.log_prob);
    }
    return nb::make_tuple(to_numpy(std::move(prefixes)), to_numpy(std::move(totals)),
                          to_numpy(std::move(log_probs)));
}

template <typename Ask>
nb::ndarray<nb::numpy, double, nb::ndim<1>> for_each(const WordPrefixes& prefixes, const Ids& ids, const Ask& ask) {
    std::vector<double> results;
    results.reserve(ids.shape(0));
    for (std::size_t i = 0; i < ids.shape(0); ++i) {
        require_prefix(prefixes, ids(i));
        results.push_back(ask(ids(i)));
    }
    return to_numpy(std::move(results));
}

}  // namespace

void bind_lattice(nb::module_& m) {
    nb::class_<WordPrefixes>(m, "WordPrefixes", "The word sequences of a lattice, grown on demand.")
        .def(nb::new_(&make_word_prefixes), "src"_a.noconvert(), "dst"_a.noconvert(), "word"_a.noconvert(),
             "score"_a.noconvert())
        .def("__len__", &WordPrefixes::size)
        .def_prop_ro("num_followed", &WordPrefixes::num_followed)
        .def("scores_to_end",
             [](const WordPrefixes& self, const Doubles& word_score) {
                 return to_numpy(self.scores_to_end(copy_of<double>(word_score)));
             },
             "word_score"_a.noconvert())
        .def("expect",
             [](WordPrefixes& self, const Doubles& word_score) {
                 self.expect(self.scores_to_end(copy_of<double>(word_score)));
             },
             "word_score"_a.noconvert())
        .def("grow", &grow, "prefix"_a)
        .def("bounds",
             [](const WordPrefixes& self, const Ids& ids) {
                 return for_each(self, ids, [&](std::int32_t one) { return self.bound(one); });
             },
             "prefixes"_a.noconvert())
        .def("expected",
             [](const WordPrefixes& self, const Ids& ids) {
                 return for_each(self, ids, [&](std::int32_t one) { return self.expected(one); });
             },
             "prefixes"_a.noconvert())
        .def("merge",
             [](WordPrefixes& self, const Ids& ids, const Doubles& other_score, std::int32_t order) {
                 require_shape(other_score, "other_score", 1, ids.shape(0));
                 require(order >= 2, "order is below 2");
                 std::size_t lost = 0;
                 for (std::size_t i = 0; i < ids.shape(0); ++i) {
                     require_prefix(self, ids(i));
                     lost += self.merge(ids(i), other_score(i), order);
                 }
                 return lost;
             },
             "prefixes"_a.noconvert(), "other_score"_a.noconvert(), "order"_a)
        .def("best",
             [](WordPrefixes& self, std::size_t k, std::size_t most_arcs) {
                 std::vector<std::int32_t> ends;
                 {
                     const PythonRelease release;
                     ends = self.best(k, most_arcs);
                 }
                 return to_numpy(std::move(ends));
             },
             "k"_a, "most_arcs"_a)
        .def("words",
             [](const WordPrefixes& self, std::int32_t prefix) {
                 require_prefix(self, prefix);
                 return to_numpy(self.words(prefix));
             },
             "prefix"_a)
        .def("parent",
             [](const WordPrefixes& self, std::int32_t prefix) {
                 require_prefix(self, prefix);
                 return self.prefix(prefix).parent;
             },
             "prefix"_a)
        .def("word",
             [](const WordPrefixes& self, std::int32_t prefix) {
                 require_prefix(self, prefix);
                 return self.prefix(prefix).word;
             },
             "prefix"_a)
        .def("end_score",
             [](const WordPrefixes& self, std::int32_t prefix) {
                 require_prefix(self, prefix);
                 return self.end_score(prefix);
             },
             "prefix"_a)
        .def("path",
             [](const WordPrefixes& self, std::int32_t prefix) {
                 require_prefix(self, prefix);
                 return to_numpy(self.path(prefix));
             },
             "prefix"_a);
    nb::class_<SearchLimits>(m, "SearchLimits")
        .def("__init__",
             [](SearchLimits* self, std::size_t num_best, std::size_t seeds, std::int32_t order, double beam,
                std::size_t patience, std::size_t max_lm_steps, std::size_t max_arcs) {
                 new (self) SearchLimits{num_best, seeds, order, beam, patience, max_lm_steps, max_arcs};
             },
             "num_best"_a, "seeds"_a, "order"_a, "beam"_a, "patience"_a, "max_lm_steps"_a, "max_arcs"_a);
    nb::class_<Reading>(m, "Reading")
        .def("__init__",
             [](Reading* self, double lm_scale, std::int32_t num_context, std::int32_t deepest, bool is_final) {
                 new (self) Reading{lm_scale, num_context, deepest, is_final};
             },
             "lm_scale"_a, "num_context"_a, "deepest"_a, "is_final"_a);
    nb::class_<LatticeSearch>(m, "LatticeSearch", "The best word sequences under a LM, wave by wave.")
        .def(nb::new_(&make_search), "src"_a.noconvert(), "dst"_a.noconvert(), "word"_a.noconvert(),
             "score"_a.noconvert(), "first_piece"_a.noconvert(), "pieces"_a.noconvert(), "limits"_a, "reading"_a)
        .def("next_wave", &next_wave)
        .def("learn", &learn, "log_prob"_a.noconvert())
        .def("stop", &LatticeSearch::stop)
        .def("found", &found)
        .def("log_prob",
             [](const LatticeSearch& self, std::int32_t prefix) {
                 require(prefix >= 0 && static_cast<std::size_t>(prefix) < self.num_met(),
                         "the search has not met prefix " + std::to_string(prefix));
                 return self.log_prob(prefix);
             },
             "prefix"_a)
        .def_prop_ro("first_seed",
                     [](const LatticeSearch& self) {
                         const std::int32_t seed = self.first_seed();
                         return seed == kNone ? std::nullopt : std::optional(seed);
                     })
        .def_prop_ro("is_over", &LatticeSearch::is_over)
        .def_prop_ro("cuts", &LatticeSearch::cuts)
        .def_prop_ro("num_run", &LatticeSearch::num_run)
        .def_prop_ro("num_nodes", &LatticeSearch::num_nodes)
        .def_prop_ro("lattice", [](LatticeSearch& self) -> WordPrefixes& { return self.lattice(); },
                     nb::rv_policy::reference_internal);
}

}  // namespace secondpass
