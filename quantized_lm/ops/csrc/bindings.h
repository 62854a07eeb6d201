// What the binding files share. Only they know Python.
//
// Every array is .noconvert(): another dtype, or one that is not contiguous, is a TypeError rather
// than a silent copy. What does not fit is a ValueError.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "plan.h"

namespace secondpass {

namespace nb = nanobind;

template <typename Scalar, std::size_t kDims>
using Array = nb::ndarray<Scalar, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Matrix = Array<const float, 2>;
using Vector = Array<const float, 1>;

inline void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument(message);
}

template <typename Shaped>
std::string shape_of(const Shaped& array) {
    std::string text = "(";
    for (std::size_t i = 0; i < array.ndim(); ++i)
        text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
    return text + ")";
}

// The array is (rows, columns); a vector has one row.
template <typename Shaped>
void require_shape(const Shaped& array, const char* name, std::size_t rows, std::size_t columns) {
    const bool is_vector = array.ndim() == 1;
    const bool fits = is_vector ? rows == 1 && array.shape(0) == columns
                                : array.shape(0) == rows && array.shape(1) == columns;
    const std::string wanted = is_vector ? std::to_string(columns)
                                         : std::to_string(rows) + ", " + std::to_string(columns);
    require(fits, std::string(name) + " is " + shape_of(array) + "; need (" + wanted + ")");
}

// The kernels of an instruction set, which must read the weight's layout.
inline const Kernels& kernels_for(const std::string& isa, const Weight& weight) {
    require(weight.layout == Layout::kDot || looks_up(isa),
            "a weight is laid out for look-up; instruction set " + isa + " needs dot products");
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
