// Arrays that go in and out of the native modules. Only binding files include this.
//
// Every array is .noconvert(): another dtype, or one that is not contiguous, is a TypeError rather
// than a silent copy. What does not fit is a ValueError.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace secondpass {

namespace nb = nanobind;

template <typename Scalar, std::size_t kDims>
using Array = nb::ndarray<Scalar, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

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

}  // namespace secondpass
