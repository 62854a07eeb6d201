// Meters what this machine can do at most: the limits that kernels are held against. No Python here.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace secondpass {

// One limit.
//   name        what is done
//   unit        what is counted: "op" (a multiplication and an addition are two) or "byte" read
//   per_second  of all threads together
struct Peak {
    const char* name;
    const char* unit;
    double per_second;
};

// Every limit of the instructions this CPU has, and of reading from each level of memory.
//   threads  at work at the same time, at least 1
//   bursts   of about a millisecond, each limit's best of which counts, at least 1: what else runs
//            on the machine disturbs some of them
//   only     the name of the one that is wanted; empty: all
std::vector<Peak> measure_peaks(std::size_t threads, std::size_t bursts, const std::string& only);

}  // namespace secondpass
