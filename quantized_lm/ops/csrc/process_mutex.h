// A mutex that a forked child does not wait for in vain. fork() copies what is locked, but not the thread that
// would unlock it, nor the rest of what that thread was about to do.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace secondpass {

#if defined(__unix__) || defined(__APPLE__)
inline std::int64_t this_process() noexcept { return getpid(); }
#else
inline std::int64_t this_process() noexcept { return 0; }
#endif

class ProcessMutex {
public:
    // Throws std::runtime_error where `is_left`.
    void lock() {
        if (is_left())
            throw std::runtime_error(
                "a pass was under way when this process was forked; load the model after the fork");
        process_.store(this_process());
        callers_.fetch_add(1);
        mutex_.lock();
    }

    void unlock() noexcept {
        mutex_.unlock();
        callers_.fetch_sub(1);
    }

    // Whether this is a forked child in which nobody will ever unlock it. Callers are counted before they lock
    // and after they unlock, and the process is noted before them: so none is missed, and none of this process
    // is taken for another's.
    bool is_left() const noexcept {
        return callers_.load() != 0 && process_.load() != this_process();
    }

private:
    std::mutex mutex_;
    std::atomic<std::size_t> callers_{0};  // who hold it or wait for it
    std::atomic<std::int64_t> process_{this_process()};  // that locked it last
};

}  // namespace secondpass
