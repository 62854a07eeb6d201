// The table of kernels of one instruction set. Compiled per instruction set.
#include "isa_functions.h"

namespace secondpass {
namespace SECONDPASS_ISA {

extern const Kernels kernels;
const Kernels kernels{norm, quantize, linear, output, logit, embed, mix, split, attend, cell};

}  // namespace SECONDPASS_ISA
}  // namespace secondpass
