// The table of instruction sets: what this build contains and this CPU can run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace secondpass {

// Names of what this build contains and this CPU can run, slowest first; "scalar" always leads.
std::vector<std::string> instruction_sets();

// Throw std::invalid_argument for a name not in instruction_sets().
const Kernels& kernels_of(const std::string& isa);
// What its kernels read besides Layout::kDot; that again if there is nothing else.
Layout lookup_layout(const std::string& isa);

}  // namespace secondpass
