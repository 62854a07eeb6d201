// What the binding files of the module _cpu share.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "interpreter.h"
#include "isa.h"
#include "plan.h"

namespace secondpass {

using Matrix = Array<const float, 2>;
using Vector = Array<const float, 1>;

// Lets other threads have Python while it lives.
class PythonRelease {
public:
    PythonRelease() : state_(PyEval_SaveThread()) {}
    ~PythonRelease() {
        outliving_python([this] { PyEval_RestoreThread(state_); });
    }
    PythonRelease(const PythonRelease&) = delete;
    PythonRelease& operator=(const PythonRelease&) = delete;

private:
    PyThreadState* state_;
};

// The kernels of an instruction set, which must read the weight's layout.
inline const Kernels& kernels_for(const std::string& isa, const Weight& weight) {
    require(weight.layout == Layout::kDot || weight.layout == lookup_layout(isa),
            "a weight is laid out for look-up by another instruction set than " + isa);
    return kernels_of(isa);
}

// What a plan holds has the sizes that the rest of it asks for, and a layout that the instruction set reads.
void require_count(const Floats& floats, const char* name, std::size_t count);
void require_weight(const std::string& isa, const Weight& weight, const char* name, std::size_t N,
                    std::size_t K);
void require_projection(const std::string& isa, const ProjectionPlan& plan, const char* name,
                        std::size_t N, std::size_t K);

void bind_operations(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_transformer(nb::module_& m);
void bind_lstm(nb::module_& m);
void bind_lattice(nb::module_& m);

}  // namespace secondpass
