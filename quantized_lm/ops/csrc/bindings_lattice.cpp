// WordPrefixes for Python. Arrays go in checked; what a search asks for comes out as arrays.
#include "bindings.h"

#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <utility>
#include <vector>

#include "word_prefixes.h"

namespace secondpass {
namespace {

using namespace nb::literals;

using Ids = Array<const std::int32_t, 1>;
using Doubles = Array<const double, 1>;

template <typename Scalar>
nb::ndarray<nb::numpy, Scalar, nb::ndim<1>> to_numpy(std::vector<Scalar> values) {
    auto* kept = new std::vector<Scalar>(std::move(values));
    nb::capsule owner(kept, [](void* pointer) noexcept { delete static_cast<std::vector<Scalar>*>(pointer); });
    return nb::ndarray<nb::numpy, Scalar, nb::ndim<1>>(kept->data(), {kept->size()}, owner);
}

template <typename Scalar>
std::vector<Scalar> copy_of(const Array<const Scalar, 1>& array) {
    return {array.data(), array.data() + array.shape(0)};
}

std::unique_ptr<WordPrefixes> make_word_prefixes(const Ids& src, const Ids& dst, const Ids& word,
                                                 const Doubles& score) {
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
        require(arcs.word[a] >= 0, "a word is negative; need 0 for none");
        require(arcs.score[a] < std::numeric_limits<double>::infinity(), "a score is NaN or infinite");
        arcs.num_states = std::max(arcs.num_states, arcs.dst[a] + 1);
    }
    return std::make_unique<WordPrefixes>(std::move(arcs));
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
             [](WordPrefixes& self, std::size_t k, std::size_t most_arcs) { return to_numpy(self.best(k, most_arcs)); },
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
}

}  // namespace secondpass
