// The element-wise half of an LSTM's step. Compiled per instruction set.
#include SECONDPASS_VEC_HEADER

#include "isa_functions.h"
#include "vec_math.h"

namespace secondpass {
namespace {

// Where gates lie.
enum Gate : std::size_t { kInput = 0, kForget = 1, kCandidate = 2, kOutput = 3 };

}  // namespace

void SECONDPASS_ISA::cell(const CellArgs& a) {
    for (std::size_t r = 0; r < a.R; ++r) {
        const float* c_above = a.above[r] + a.c_offset;
        float* h = a.state[r];
        float* c = h + a.c_offset;
        for (std::size_t k = 0; k < a.count; k += kLanes) {
            const auto gate = [&](Gate which) {
                return add(load(a.input[r] + which * a.input_stride + k),
                           load(a.recurrent[r] + which * a.recurrent_stride + k));
            };
            const Vec kept = multiply(sigmoid(gate(kForget)), load(c_above + k));
            const Vec added = multiply(sigmoid(gate(kInput)), hyperbolic_tangent(gate(kCandidate)));
            const Vec now = add(kept, added);
            store(c + k, now);
            store(h + k, multiply(sigmoid(gate(kOutput)), hyperbolic_tangent(now)));
        }
    }
}

}  // namespace secondpass
