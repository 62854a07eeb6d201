// Transformer for Python: its plan, filled in field by field, its trees and its forward pass.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "transformer.h"

namespace secondpass {
namespace {

using namespace nb::literals;

using AnyFloats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Integers = Array<const std::int32_t, 1>;

void require_count(const Floats& floats, const char* name, std::size_t count) {
    require(floats.data() == nullptr || floats.count() == count,
            std::string(name) + " has " + std::to_string(floats.count()) + " numbers; need " +
                std::to_string(count));
}

void require_norm(const NormPlan& plan, const char* name, std::size_t dim) {
    require_count(plan.gain, name, dim);
    require_count(plan.bias, name, dim);
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

// So that nothing below has to check again.
void require_plan(const std::string& isa, const TransformerPlan& plan) {
    const std::size_t dim = plan.model_dim;
    require(dim > 0 && plan.num_heads > 0 && dim % plan.num_heads == 0,
            "model_dim is " + std::to_string(dim) + " and num_heads " +
                std::to_string(plan.num_heads) + "; need a multiple");
    require(!plan.blocks.empty(), "there are 0 blocks; need 1 or more");
    require_weight(isa, plan.embedding.weight, "embedding", plan.embedding.weight.N, dim);
    require_norm(plan.final_norm, "final_norm", dim);
    const std::size_t depths = plan.max_tokens + 1;
    require_count(plan.positions, "positions", depths * dim);
    require_count(plan.cos, "cos", depths * (dim / plan.num_heads / 2));
    require_count(plan.sin, "sin", plan.cos.count());
    for (const BlockPlan& block : plan.blocks) {
        require_norm(block.attention_norm, "attention_norm", dim);
        require_norm(block.ffn_norm, "ffn_norm", dim);
        require_projection(isa, block.qkv, "qkv", 3 * dim, dim);
        require_projection(isa, block.out, "out", dim, dim);
        require_projection(isa, block.up, "up", plan.ffn_dim, dim);
        require_projection(isa, block.down, "down", dim, plan.ffn_dim);
    }
}

std::unique_ptr<Transformer> make_transformer(const std::string& isa, std::shared_ptr<Pool> pool,
                                              const TransformerPlan& plan) {
    require_plan(isa, plan);
    return std::make_unique<Transformer>(kernels_of(isa), std::move(pool), plan);
}

void extend(Transformer& model, const std::vector<Tree*>& trees,
            const std::vector<Integers>& parents, const std::vector<Integers>& tokens,
            const Array<float, 1>& log_prob) {
    require(parents.size() == trees.size() && tokens.size() == trees.size(),
            "there are " + std::to_string(trees.size()) + " trees, " +
                std::to_string(parents.size()) + " parents and " + std::to_string(tokens.size()) +
                " tokens; need one number");
    std::vector<Growth> growths;
    std::size_t count = 0;
    for (std::size_t i = 0; i < trees.size(); ++i) {
        require(parents[i].shape(0) == tokens[i].shape(0),
                "parents are " + shape_of(parents[i]) + ", tokens " + shape_of(tokens[i]) +
                    "; need one shape");
        growths.push_back({trees[i], parents[i].data(), tokens[i].data(), tokens[i].shape(0)});
        count += tokens[i].shape(0);
    }
    require_shape(log_prob, "log_prob", 1, count);
    const nb::gil_scoped_release release;
    model.extend(growths.data(), growths.size(), log_prob.data());
}

void bind_plan(nb::module_& m) {
    nb::class_<Floats>(m, "Floats", "A copy of an array, or nothing.")
        .def(nb::new_([](const std::optional<AnyFloats>& numbers) {
                 return numbers ? Floats(numbers->data(), numbers->size()) : Floats();
             }),
             "numbers"_a.noconvert().none());
    nb::enum_<Activation>(m, "Activation")
        .value("squared_relu", Activation::kSquaredRelu)
        .value("gelu_tanh", Activation::kGeluTanh);
    nb::class_<NormPlan>(m, "NormPlan")
        .def(nb::init<>())
        .def_rw("gain", &NormPlan::gain)
        .def_rw("bias", &NormPlan::bias)
        .def_rw("epsilon", &NormPlan::epsilon)
        .def_rw("subtracts_mean", &NormPlan::subtracts_mean);
    nb::class_<ProjectionPlan>(m, "ProjectionPlan")
        .def(nb::init<>())
        .def_rw("weight", &ProjectionPlan::weight)
        .def_rw("bias", &ProjectionPlan::bias);
    nb::class_<BlockPlan>(m, "BlockPlan")
        .def(nb::init<>())
        .def_rw("attention_norm", &BlockPlan::attention_norm)
        .def_rw("ffn_norm", &BlockPlan::ffn_norm)
        .def_rw("qkv", &BlockPlan::qkv)
        .def_rw("out", &BlockPlan::out)
        .def_rw("up", &BlockPlan::up)
        .def_rw("down", &BlockPlan::down)
        .def_rw("mix_stream", &BlockPlan::mix_stream)
        .def_rw("mix_embedding", &BlockPlan::mix_embedding);
    nb::class_<TransformerPlan>(m, "TransformerPlan")
        .def(nb::init<>())
        .def_rw("model_dim", &TransformerPlan::model_dim)
        .def_rw("num_heads", &TransformerPlan::num_heads)
        .def_rw("ffn_dim", &TransformerPlan::ffn_dim)
        .def_rw("max_tokens", &TransformerPlan::max_tokens)
        .def_rw("embedding", &TransformerPlan::embedding)
        .def_rw("positions", &TransformerPlan::positions)
        .def_rw("cos", &TransformerPlan::cos)
        .def_rw("sin", &TransformerPlan::sin)
        .def_rw("normalizes_embedding", &TransformerPlan::normalizes_embedding)
        .def_rw("normalizes_qk", &TransformerPlan::normalizes_qk)
        .def_rw("norm_epsilon", &TransformerPlan::norm_epsilon)
        .def_rw("activation", &TransformerPlan::activation)
        .def_rw("blocks", &TransformerPlan::blocks)
        .def_rw("final_norm", &TransformerPlan::final_norm);
}

}  // namespace

void bind_transformer(nb::module_& m) {
    bind_plan(m);
    nb::class_<Tree>(m, "Tree", "A growing tree of tokens.")
        .def("__len__", &Tree::size)
        .def_prop_ro("run_nodes", &Tree::run_nodes, "Nodes run through the network so far.");
    nb::class_<Transformer>(m, "Transformer", "A packed Transformer over trees of tokens.")
        .def(nb::new_(&make_transformer), "isa"_a, "pool"_a, "plan"_a)
        .def("new_tree", &Transformer::new_tree, "path"_a, "A tree that is one path, root first.")
        .def("extend", &extend, "trees"_a, "parents"_a.noconvert(), "tokens"_a.noconvert(),
             "log_prob"_a.noconvert(),
             "Append nodes (n,) to each tree and write log P of all of them to log_prob.");
}

}  // namespace secondpass
