// Lstm for Python, and its plan, which is filled in field by field.
#include "bindings.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>

#include "lstm.h"

namespace secondpass {
namespace {

using namespace nb::literals;

// So that nothing below has to check again.
void require_plan(const std::string& isa, const LstmPlan& plan) {
    const std::size_t dim = plan.model_dim;
    require(dim > 0, "model_dim is 0; need 1 or more");
    require(!plan.layers.empty(), "there are 0 layers; need 1 or more");
    require_weight(isa, plan.embedding.weight, "embedding", plan.embedding.weight.N, dim);
    for (const LstmLayerPlan& layer : plan.layers)
        for (std::size_t gate = 0; gate < kGates; ++gate) {
            require_projection(isa, layer.input[gate], "input", dim, dim);
            require_projection(isa, layer.recurrent[gate], "recurrent", dim, dim);
        }
}

std::unique_ptr<Lstm> make_lstm(const std::string& isa, std::shared_ptr<Pool> pool,
                                const LstmPlan& plan) {
    require_plan(isa, plan);
    return std::make_unique<Lstm>(kernels_of(isa), std::move(pool), plan);
}

}  // namespace

void bind_lstm(nb::module_& m) {
    nb::class_<LstmLayerPlan>(m, "LstmLayerPlan")
        .def(nb::init<>())
        .def_rw("input", &LstmLayerPlan::input)
        .def_rw("recurrent", &LstmLayerPlan::recurrent);
    nb::class_<LstmPlan>(m, "LstmPlan")
        .def(nb::init<>())
        .def_rw("model_dim", &LstmPlan::model_dim)
        .def_rw("max_tokens", &LstmPlan::max_tokens)
        .def_rw("embedding", &LstmPlan::embedding)
        .def_rw("layers", &LstmPlan::layers);
    nb::class_<Lstm, Engine>(m, "Lstm", "A packed LSTM over trees of tokens.")
        .def(nb::new_(&make_lstm), "isa"_a, "pool"_a, "plan"_a);
}

}  // namespace secondpass
