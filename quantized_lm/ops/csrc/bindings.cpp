// The Python module quantized_lm.ops._cpu: weights, pools and the operations of one weight.
#include "bindings.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "operations.h"
#include "peaks.h"
#include "pool.h"

namespace secondpass {
namespace {

using namespace nb::literals;

using Indices = Array<const std::int64_t, 1>;
// torch has few operations on uint32, so words come as int32 with the same bits.
using Words = Array<const std::int32_t, 3>;
using Scales = Array<const float, 3>;
using Levels = Array<const std::int8_t, 1>;
using Sizes = std::array<std::size_t, 6>;  // N, K, group_size, bits, Layout, ActivationRule

constexpr std::size_t kMostColumns = 131072;  // above, sums of products may pass 2^31
constexpr std::size_t kMostThreads = 1024;

// What a weight points into.
struct Arrays {
    Words words;
    Scales scale;
    Levels levels;
};

template <typename Shaped>
void require_panels(const Shaped& array, const char* name, std::size_t panels, std::size_t rows) {
    require(array.shape(0) == panels && array.shape(1) == rows && array.shape(2) == kPanel,
            std::string(name) + " is " + shape_of(array) + "; need (" + std::to_string(panels) +
                ", " + std::to_string(rows) + ", " + std::to_string(kPanel) + ")");
}

SharedWeight make_weight(const Words& words, const Scales& scale, const Levels& levels,
                         const Sizes& sizes) {
    const auto [N, K, group_size, bits, layout, rule] = sizes;
    require(N > 0 && K > 0 && K <= kMostColumns && group_size > 0 && group_size <= K,
            "N, K and group_size are " + std::to_string(N) + ", " + std::to_string(K) + ", " +
                std::to_string(group_size) + "; need 1 to any, 1 to 131072, 1 to K");
    require(bits == 1 || bits == 2 || bits == 4 || bits == 8,
            "bits are " + std::to_string(bits) + "; need 1, 2, 4 or 8");
    require(layout == 0 || (layout <= 2 && bits <= 2),
            "layout is " + std::to_string(layout) + "; need 0, or 1 or 2 with 1 or 2 bits");
    require(rule <= 1, "rule is " + std::to_string(rule) + "; need 0 or 1");
    require(levels.shape(0) == kMaxLevels, "levels are " + shape_of(levels) + "; need (16)");
    const Weight weight{reinterpret_cast<const std::uint32_t*>(words.data()),
                        scale.data(),
                        levels.data(),
                        N,
                        K,
                        group_size,
                        bits,
                        static_cast<Layout>(layout),
                        static_cast<ActivationRule>(rule)};
    require_panels(words, "words", panels_of(weight), words_per_row(weight));
    require_panels(scale, "scale", panels_of(weight), groups_of(weight));
    return {weight, std::make_shared<Arrays>(Arrays{words, scale, levels})};
}

// torch's operators take numbers, not objects, so a pool can also be named by one. A number names
// nothing once its pool has ended.
class Handles {
public:
    std::shared_ptr<Pool> make_pool(std::size_t threads, bool pins) {
        require(threads >= 1 && threads <= kMostThreads,
                "threads is " + std::to_string(threads) + "; need 1 to 1024");
        auto pool = std::make_shared<Pool>(threads, pins);
        const std::lock_guard<std::mutex> lock(mutex_);
        pools_[++last_] = pool;
        return pool;
    }

    std::int64_t handle_of(const Pool& pool) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const auto& [handle, known] : pools_)
            if (known.lock().get() == &pool) return handle;
        return 0;
    }

    std::shared_ptr<Pool> find(std::int64_t handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = pools_.find(handle);
        const std::shared_ptr<Pool> pool = found == pools_.end() ? nullptr : found->second.lock();
        require(pool != nullptr, "no pool has handle " + std::to_string(handle));
        return pool;
    }

private:
    std::mutex mutex_;
    std::map<std::int64_t, std::weak_ptr<Pool>> pools_;
    std::int64_t last_ = 0;
};

Handles& handles() {
    static Handles all;
    return all;
}

void linear_of(const Matrix& x, const SharedWeight& shared, const std::string& isa,
               std::int64_t handle, const Array<float, 2>& y) {
    const Weight& weight = shared.weight;
    const Kernels& kernels = kernels_for(isa, weight);
    const std::shared_ptr<Pool> pool = handles().find(handle);
    require_shape(x, "x", x.shape(0), weight.K);
    require_shape(y, "y", x.shape(0), weight.N);
    const PythonRelease release;
    linear(kernels, *pool, weight, x.data(), x.shape(0), y.data());
}

void embed_of(const Indices& tokens, const SharedWeight& shared, const std::string& isa,
              std::int64_t handle, const Array<float, 2>& y) {
    const Weight& weight = shared.weight;
    const Kernels& kernels = kernels_for(isa, weight);
    const std::shared_ptr<Pool> pool = handles().find(handle);
    require_shape(y, "y", tokens.shape(0), weight.K);
    const PythonRelease release;
    embed(kernels, *pool, weight, tokens.data(), tokens.shape(0), y.data());
}

void gather_of(const Matrix& hidden, const Indices& rows, const Indices& tokens,
               const SharedWeight& shared, const std::string& isa, std::int64_t handle,
               const Array<float, 1>& y) {
    const Weight& weight = shared.weight;
    const Kernels& kernels = kernels_for(isa, weight);
    const std::shared_ptr<Pool> pool = handles().find(handle);
    require_shape(hidden, "hidden", hidden.shape(0), weight.K);
    require_shape(rows, "rows", 1, tokens.shape(0));
    require_shape(y, "y", 1, tokens.shape(0));
    const PythonRelease release;
    gather_log_prob(kernels, *pool, weight,
                    {hidden.data(), hidden.shape(0), rows.data(), tokens.data(),
                     tokens.shape(0), y.data()});
}

double time_of(const Matrix& x, const SharedWeight& shared, const std::string& isa,
               std::size_t repeats) {
    const Kernels& kernels = kernels_for(isa, shared.weight);
    require_shape(x, "x", x.shape(0), shared.weight.K);
    const PythonRelease release;
    return time_linear(kernels, shared.weight, x.data(), x.shape(0), repeats);
}

std::vector<std::tuple<std::string, std::string, double>> peaks_of(std::size_t threads,
                                                                   std::size_t bursts,
                                                                   const std::string& only) {
    require(threads >= 1 && threads <= kMostThreads && bursts >= 1,
            "threads and bursts are " + std::to_string(threads) + " and " +
                std::to_string(bursts) + "; need 1 to 1024, and 1 or more");
    const PythonRelease release;
    std::vector<std::tuple<std::string, std::string, double>> peaks;
    for (const Peak& peak : measure_peaks(threads, bursts, only))
        peaks.emplace_back(peak.name, peak.unit, peak.per_second);
    return peaks;
}

}  // namespace

void bind_operations(nb::module_& m) {
    m.attr("PANEL") = kPanel;
    m.attr("MAX_COLUMNS") = kMostColumns;
    m.attr("ROW_BLOCK") = kRowBlock;
    m.def("instruction_sets", &instruction_sets,
          "What this build contains and this CPU can run, slowest first.");
    m.def("lookup_layout",
          [](const std::string& isa) { return static_cast<int>(lookup_layout(isa)); }, "isa"_a,
          "The layout that an instruction set looks up in; 0, that of dot products, if none.");
    m.def("measure_peaks", &peaks_of, "threads"_a, "bursts"_a, "only"_a,
          "Limits of the machine, or one of them: (name, unit, units per second of all threads).");
    nb::class_<SharedWeight>(m, "Weight", "A packed weight (N, K); keeps its arrays alive.")
        .def(nb::new_(&make_weight), "words"_a.noconvert(), "scale"_a.noconvert(),
             "levels"_a.noconvert(), "layout"_a);
    nb::class_<Pool>(m, "Pool", "Threads that work together.")
        .def(nb::new_([](std::size_t threads, bool pins) {
                 return handles().make_pool(threads, pins);
             }),
             "threads"_a, "pins"_a)
        .def_prop_ro("threads", &Pool::threads)
        .def_prop_ro("handle", [](const Pool& pool) { return handles().handle_of(pool); });
    m.def("linear", &linear_of, "x"_a.noconvert(), "weight"_a, "isa"_a, "pool"_a,
          "y"_a.noconvert(), "Write x (M, K) times weight (N, K) transposed to y (M, N).");
    m.def("embed", &embed_of, "tokens"_a.noconvert(), "weight"_a, "isa"_a, "pool"_a,
          "y"_a.noconvert(), "Write rows `tokens` (T,) of the weight to y (T, K).");
    m.def("gather_log_prob", &gather_of, "hidden"_a.noconvert(), "rows"_a.noconvert(),
          "tokens"_a.noconvert(), "weight"_a, "isa"_a, "pool"_a, "y"_a.noconvert(),
          "Write log softmax(hidden @ weight.T)[rows, tokens] to y (C,).");
    m.def("time_linear", &time_of, "x"_a.noconvert(), "weight"_a, "isa"_a, "repeats"_a,
          "Seconds of `repeats` products on one thread, quantization of x (M, K) included.");
}

}  // namespace secondpass

NB_MODULE(_cpu, m) {
    m.doc() = "Native kernels for packed weights, and the engine above them.";
    // Whatever is alive when the interpreter ends goes with the process.
    nanobind::set_leak_warnings(false);
    secondpass::bind_operations(m);
    secondpass::bind_engine(m);
    secondpass::bind_transformer(m);
    secondpass::bind_lstm(m);
    secondpass::bind_lattice(m);
}
