// Transformer for Python, and its plan, which is filled in field by field.
#include "bindings.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "transformer.h"

namespace secondpass {
namespace {

using namespace nb::literals;

void require_norm(const NormPlan& plan, const char* name, std::size_t dim) {
    require_count(plan.gain, name, dim);
    require_count(plan.bias, name, dim);
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

void bind_plan(nb::module_& m) {
    nb::enum_<Activation>(m, "Activation")
        .value("squared_relu", Activation::kSquaredRelu)
        .value("gelu_tanh", Activation::kGeluTanh);
    nb::class_<NormPlan>(m, "NormPlan")
        .def(nb::init<>())
        .def_rw("gain", &NormPlan::gain)
        .def_rw("bias", &NormPlan::bias)
        .def_rw("epsilon", &NormPlan::epsilon)
        .def_rw("subtracts_mean", &NormPlan::subtracts_mean);
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
    nb::class_<Transformer, Engine>(m, "Transformer", "A packed Transformer over trees of tokens.")
        .def(nb::new_(&make_transformer), "isa"_a, "pool"_a, "plan"_a);
}

}  // namespace secondpass
