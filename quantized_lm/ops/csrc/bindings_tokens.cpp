// The Python module quantized_lm._tokens: texts to tokens, tokens to trees. Apart from _cpu, so that neither
// needs a model or torch. Holds the interpreter's lock throughout: it is what guards a memo, and a list of 100
// sentences takes tens of microseconds.
#include "arrays.h"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "interpreter.h"
#include "prefix_merge.h"
#include "word_memo.h"

namespace secondpass {
namespace {

using namespace nb::literals;

using Ids = Array<const std::int32_t, 1>;
using Lengths = Array<const std::int64_t, 1>;
using Words = std::vector<std::vector<std::int32_t>>;  // tokens of each

nb::object owned(PyObject* object) {
    if (object == nullptr) nb::raise_python_error();
    return nb::steal(object);
}

// What `str.isspace` says of ASCII.
constexpr bool is_space(char byte) {
    return byte == ' ' || (byte >= '\t' && byte <= '\r') || (byte >= 0x1c && byte <= 0x1f);
}

// Tokens of many texts, by way of a memo. `spell` makes tokens of the words of a chunk that is not known.
class Encoder {
public:
    Encoder(std::size_t most_chunks, std::size_t most_chars, std::int32_t unknown, std::int32_t ending)
        : memo_(most_chunks), most_chars_(most_chars), unknown_(unknown), ending_(ending) {}

    std::size_t size() const noexcept { return memo_.size(); }

    // (ids, num_tokens, num_words, num_oov), as EncodedTexts has them.
    nb::tuple encode(const nb::tuple& texts, const nb::callable& spell) {
        Output output;
        for (const nb::handle text : texts) {
            if (!PyUnicode_Check(text.ptr())) throw nb::type_error("a text is no str");
            output.counts = {};
            if (PyUnicode_IS_ASCII(text.ptr()))
                add_ascii(text, spell, output);
            else
                add_text(text, spell, output);
            output.ids.push_back(ending_);
            output.num_tokens.push_back(output.counts.tokens);
            output.num_words.push_back(output.counts.words);
            output.num_oov.push_back(output.counts.oov);
        }
        return nb::make_tuple(to_numpy(std::move(output.ids)), to_numpy(std::move(output.num_tokens)),
                              to_numpy(std::move(output.num_words)), to_numpy(std::move(output.num_oov)));
    }

private:
    struct Output {
        std::vector<std::int32_t> ids;
        std::vector<std::int64_t> num_tokens, num_words, num_oov;
        TokenCounts counts;  // of the text at hand
    };

    void add_ascii(nb::handle text, const nb::callable& spell, Output& output) {
        Py_ssize_t size = 0;
        const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        if (bytes == nullptr) nb::raise_python_error();
        for (Py_ssize_t at = 0; at < size;) {
            if (is_space(bytes[at])) {
                ++at;
                continue;
            }
            const Py_ssize_t start = at;
            while (at < size && !is_space(bytes[at])) ++at;
            const std::string_view chunk(bytes + start, static_cast<std::size_t>(at - start));
            if (!memo_.append(chunk, output.ids, output.counts))
                learn(owned(PyUnicode_Substring(text.ptr(), start, at)), chunk, chunk.size(), spell, output);
        }
    }

    // What a space is outside of ASCII is for Python to say.
    void add_text(nb::handle text, const nb::callable& spell, Output& output) {
        const nb::object chunks = owned(PyUnicode_Split(text.ptr(), nullptr, -1));
        for (const nb::handle chunk : nb::borrow<nb::list>(chunks)) {
            Py_ssize_t size = 0;
            const char* bytes = PyUnicode_AsUTF8AndSize(chunk.ptr(), &size);
            if (bytes == nullptr) {  // half a surrogate pair, which has no bytes to be known by
                PyErr_Clear();
                take(words_of(nb::borrow(chunk), spell), output);
                continue;
            }
            const std::string_view known_by(bytes, static_cast<std::size_t>(size));
            const auto chars = static_cast<std::size_t>(PyUnicode_GetLength(chunk.ptr()));
            if (!memo_.append(known_by, output.ids, output.counts))
                learn(nb::borrow(chunk), known_by, chars, spell, output);
        }
    }

    // Python runs meanwhile, and other threads with it: the memo may change, `output` is ours alone.
    static Words words_of(const nb::object& chunk, const nb::callable& spell) {
        return nb::cast<Words>(outliving_python([&] { return spell(chunk); }));
    }

    void learn(const nb::object& chunk, std::string_view known_by, std::size_t chars, const nb::callable& spell,
               Output& output) {
        const std::size_t first = output.ids.size();
        const TokenCounts counts = take(words_of(chunk, spell), output);
        if (chars <= most_chars_)
            memo_.add(known_by, {output.ids.begin() + static_cast<std::ptrdiff_t>(first), output.ids.end()}, counts);
    }

    TokenCounts take(const Words& words, Output& output) const {
        TokenCounts counts;
        for (const std::vector<std::int32_t>& word : words) {
            output.ids.insert(output.ids.end(), word.begin(), word.end());
            counts.tokens += static_cast<std::int64_t>(word.size());
            counts.words += 1;
            counts.oov += std::find(word.begin(), word.end(), unknown_) != word.end();
        }
        output.counts.add(counts);
        return counts;
    }

    WordMemo memo_;
    const std::size_t most_chars_;  // of a chunk that is kept
    const std::int32_t unknown_;
    const std::int32_t ending_;
};

// (token, parent, leaf, path_node), as TokenTree has them.
nb::tuple merge(const std::vector<std::int32_t>& stem, const Ids& ids, const Lengths& lengths) {
    require(!stem.empty(), "stem is empty; need the root");
    std::size_t left = ids.shape(0);
    for (std::size_t s = 0; s < lengths.shape(0); ++s) {
        require(lengths(s) >= 0 && static_cast<std::size_t>(lengths(s)) <= left,
                "lengths do not add up to the " + std::to_string(ids.shape(0)) + " ids");
        left -= static_cast<std::size_t>(lengths(s));
    }
    require(left == 0, "lengths do not add up to the " + std::to_string(ids.shape(0)) + " ids");
    require(stem.size() + ids.shape(0) <= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()),
            "there are more tokens than nodes can be numbered");
    MergedTree tree = merge_prefixes(stem, {ids.data(), lengths.data(), lengths.shape(0)});
    return nb::make_tuple(to_numpy(std::move(tree.token)), to_numpy(std::move(tree.parent)),
                          to_numpy(std::move(tree.leaf)), to_numpy(std::move(tree.path_node)));
}

}  // namespace
}  // namespace secondpass

NB_MODULE(_tokens, m) {
    m.doc() = "Texts to tokens, and token sequences to trees.";
    nanobind::set_leak_warnings(false);
    using namespace secondpass;
    nb::class_<Encoder>(m, "Encoder", "Tokens of texts, chunk by chunk as they were spelled before.")
        .def(nb::init<std::size_t, std::size_t, std::int32_t, std::int32_t>(), "most_chunks"_a, "most_chars"_a,
             "unknown"_a, "ending"_a)
        .def("__len__", &Encoder::size)
        .def("encode", &Encoder::encode, "texts"_a, "spell"_a);
    m.def("merge_prefixes", &merge, "stem"_a, "ids"_a.noconvert(), "lengths"_a.noconvert());
}
