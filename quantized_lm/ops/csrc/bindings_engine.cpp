// What every engine has for Python: parts of plans, trees, and the forward pass.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "engine.h"

namespace secondpass {
namespace {

using namespace nb::literals;

using AnyFloats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Integers = Array<const std::int32_t, 1>;

void extend(Engine& engine, const std::vector<Tree*>& trees,
            const std::vector<Integers>& parents, const std::vector<Integers>& tokens,
            const Array<float, 1>& log_prob) {
    require(parents.size() == trees.size() && tokens.size() == trees.size(),
            "there are " + std::to_string(trees.size()) + " trees, " +
                std::to_string(parents.size()) + " parents and " + std::to_string(tokens.size()) +
                " tokens; need one number");
    std::vector<Growth> growths;
    std::size_t count = 0;
    for (std::size_t i = 0; i < trees.size(); ++i) {
        require(trees[i] != nullptr, "tree " + std::to_string(i) + " is None; need a tree");
        require(parents[i].shape(0) == tokens[i].shape(0),
                "parents are " + shape_of(parents[i]) + ", tokens " + shape_of(tokens[i]) +
                    "; need one shape");
        growths.push_back({trees[i], parents[i].data(), tokens[i].data(), tokens[i].shape(0)});
        count += tokens[i].shape(0);
    }
    require_shape(log_prob, "log_prob", 1, count);
    const PythonRelease release;
    engine.extend(growths.data(), growths.size(), log_prob.data());
}

}  // namespace

void require_count(const Floats& floats, const char* name, std::size_t count) {
    require(floats.data() == nullptr || floats.count() == count,
            std::string(name) + " has " + std::to_string(floats.count()) + " numbers; need " +
                std::to_string(count));
}

void require_weight(const std::string& isa, const Weight& weight, const char* name, std::size_t N,
                    std::size_t K) {
    require(weight.N == N && weight.K == K,
            std::string(name) + " is (" + std::to_string(weight.N) + ", " +
                std::to_string(weight.K) + "); need (" + std::to_string(N) + ", " +
                std::to_string(K) + ")");
    kernels_for(isa, weight);
}

void require_projection(const std::string& isa, const ProjectionPlan& plan, const char* name,
                        std::size_t N, std::size_t K) {
    require_weight(isa, plan.weight.weight, name, N, K);
    require_count(plan.bias, name, N);
}

void bind_engine(nb::module_& m) {
    nb::class_<Floats>(m, "Floats", "A copy of an array, or nothing.")
        .def(nb::new_([](const std::optional<AnyFloats>& numbers) {
                 return numbers ? Floats(numbers->data(), numbers->size()) : Floats();
             }),
             "numbers"_a.noconvert().none());
    nb::class_<ProjectionPlan>(m, "ProjectionPlan")
        .def(nb::init<>())
        .def_rw("weight", &ProjectionPlan::weight)
        .def_rw("bias", &ProjectionPlan::bias);
    nb::class_<Tree>(m, "Tree", "A growing tree of tokens.")
        .def("__len__", &Tree::size)
        .def_prop_ro("run_nodes", &Tree::run_nodes, "Nodes run through the network so far.")
        .def_prop_ro("num_bytes", &Tree::bytes, "Memory that it holds.");
    nb::class_<Engine>(m, "Engine", "A packed model over trees of tokens.")
        .def("new_tree", &Engine::new_tree, "path"_a, "A tree that is one path, root first.")
        .def(
            "fork",
            [](const Engine& engine, const Tree& tree, const Integers& nodes) {
                return engine.fork(tree, nodes.data(), nodes.shape(0));
            },
            "tree"_a, "nodes"_a.noconvert(), "A tree of some nodes of another: root first, parents first.")
        .def("extend", &extend, "trees"_a, "parents"_a.noconvert(), "tokens"_a.noconvert(),
             "log_prob"_a.noconvert(),
             "Append nodes (n,) to each tree and write log P of all of them to log_prob.");
}

}  // namespace secondpass
