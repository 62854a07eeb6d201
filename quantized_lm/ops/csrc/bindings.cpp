// The Python module quantized_lm.ops._cpu: the only file here that knows Python.
//
// Every array is .noconvert(): another dtype, or one that is not contiguous, is a TypeError rather
// than a silent copy. Shapes are checked here; that indices are in range is checked by ops/cpu.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <string>

#include "dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;
using secondpass::Weight;

namespace {

template <typename Scalar, std::size_t kDims>
using Array = nb::ndarray<Scalar, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Matrix = Array<const float, 2>;
using Vector = Array<const float, 1>;
using Indices = Array<const std::int64_t, 1>;
// torch has few operations on uint32, so words come as int32 with the same bits.
using Words = Array<const std::int32_t, 3>;
using Scales = Array<const float, 3>;
using Layout = std::array<std::size_t, 4>;  // N, K, group_size, bits

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

Weight make_weight(const Words& words, const Scales& scale, const Vector& levels,
                   const Layout& layout) {
    const auto [N, K, group_size, bits] = layout;
    const Weight weight{reinterpret_cast<const std::uint32_t*>(words.data()),
                        scale.data(), levels.data(), N, K, group_size, bits};
    require(bits == 1 || bits == 2 || bits == 4 || bits == 8, "bits must be 1, 2, 4 or 8");
    require(N > 0 && K > 0 && group_size > 0, "N, K and group_size must be positive");
    require(words.shape(0) == weight.panels() && words.shape(1) == weight.words_per_row() &&
                words.shape(2) == secondpass::kPanel,
            "words must be (ceil(N / 64), ceil(K * bits / 32), 64)");
    require(scale.shape(0) == weight.panels() && scale.shape(1) == weight.groups() &&
                scale.shape(2) == secondpass::kPanel,
            "scale must be (ceil(N / 64), ceil(K / group_size), 64)");
    require(levels.shape(0) == secondpass::kMaxLevels, "levels must be (16,)");
    return weight;
}

void linear(const Matrix& x, const Words& words, const Scales& scale, const Vector& levels,
            const Layout& layout, const std::string& isa, const Array<float, 2>& y) {
    const Weight weight = make_weight(words, scale, levels, layout);
    require(x.shape(1) == weight.K, "x must be (M, K)");
    require(y.shape(0) == x.shape(0) && y.shape(1) == weight.N, "y must be (M, N)");
    nb::gil_scoped_release release;
    secondpass::linear(isa, weight, x.data(), x.shape(0), y.data());
}

void embed(const Indices& tokens, const Words& words, const Scales& scale, const Vector& levels,
           const Layout& layout, const std::string& isa, const Array<float, 2>& y) {
    const Weight weight = make_weight(words, scale, levels, layout);
    require(y.shape(0) == tokens.shape(0) && y.shape(1) == weight.K, "y must be (T, K)");
    nb::gil_scoped_release release;
    secondpass::embed(isa, weight, tokens.data(), tokens.shape(0), y.data());
}

void gather_log_prob(const Matrix& hidden, const Indices& rows, const Indices& tokens,
                     const Words& words, const Scales& scale, const Vector& levels,
                     const Layout& layout, const std::string& isa, const Array<float, 1>& y) {
    const Weight weight = make_weight(words, scale, levels, layout);
    require(hidden.shape(1) == weight.K, "hidden must be (M, K)");
    require(rows.shape(0) == tokens.shape(0) && y.shape(0) == tokens.shape(0),
            "rows, tokens and y must be (C,)");
    nb::gil_scoped_release release;
    secondpass::gather_log_prob(isa, weight,
                                {hidden.data(), hidden.shape(0), rows.data(), tokens.data(),
                                 tokens.shape(0), y.data()});
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "Native kernels for packed weights. Use quantized_lm.ops instead.";
    m.attr("PANEL") = secondpass::kPanel;
    m.def("instruction_sets", &secondpass::instruction_sets,
          "What this build contains and this CPU can run, slowest first.");
    m.def("linear", &linear, "x"_a.noconvert(), "words"_a.noconvert(), "scale"_a.noconvert(),
          "levels"_a.noconvert(), "layout"_a, "isa"_a, "y"_a.noconvert(),
          "Write x (M, K) times weight (N, K) transposed to y (M, N).");
    m.def("embed", &embed, "tokens"_a.noconvert(), "words"_a.noconvert(), "scale"_a.noconvert(),
          "levels"_a.noconvert(), "layout"_a, "isa"_a, "y"_a.noconvert(),
          "Write rows `tokens` (T,) of the weight to y (T, K).");
    m.def("gather_log_prob", &gather_log_prob, "hidden"_a.noconvert(), "rows"_a.noconvert(),
          "tokens"_a.noconvert(), "words"_a.noconvert(), "scale"_a.noconvert(),
          "levels"_a.noconvert(), "layout"_a, "isa"_a, "y"_a.noconvert(),
          "Write log softmax(hidden @ weight.T)[rows, tokens] to y (C,).");
}
