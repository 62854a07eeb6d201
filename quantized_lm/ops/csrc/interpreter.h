// What a thread does that asks for Python while the interpreter ends. Only binding files include this.
#pragma once

#include <chrono>
#include <thread>

#include <cxxabi.h>

namespace secondpass {

// Runs what may wait for Python. Before 3.14 Python ends a daemon thread that asks for it while the
// interpreter ends: the thread's stack is unwound, which C++ answers with an abort. Such an unwinding may
// be caught, and held but not ended, so the thread stays here until the process is gone.
template <typename Call>
decltype(auto) outliving_python(const Call& call) {
#ifdef __GLIBCXX__
    try {
        return call();
    } catch (const abi::__forced_unwind&) {
        for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
#else  // without an unwinding the thread just ends
    return call();
#endif
}

}  // namespace secondpass
