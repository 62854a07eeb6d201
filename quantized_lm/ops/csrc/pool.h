// A few threads that run one task together. The caller is one of them: a pool of one starts none.
//
// Workers look for the next task for some tens of microseconds and then sleep: an idle pool uses no
// CPU. Who waits inside a task is more patient, but sleeps too in the end: where there are fewer
// free cores than threads, the one that is waited for needs the core. A pool does not survive
// fork(): the child has the object but not its threads. There it refuses to run anything, and what
// its threads were about to use is never freed.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "process_mutex.h"

namespace secondpass {

// How many steps some work has made.
using Progress = std::atomic<std::size_t>;

class Pool {
public:
    // threads at least 1. With `pins`, thread i stays on the i-th core that the pool's maker may
    // use (Linux; elsewhere ignored); the caller only while it runs a task.
    Pool(std::size_t threads, bool pins);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    std::size_t threads() const noexcept { return threads_; }

    // Calls task(i) on every thread i < threads() and returns when all are done. Callers wait for
    // each other. A task may not throw: the others could be at a barrier, waiting for it. Throws
    // std::runtime_error in a forked child that lacks the threads, or was forked from a task.
    template <typename Task>
    void run(const Task& task) {
        static_assert(noexcept(task(std::size_t{0})), "a task may not throw");
        run([](const void* context, std::size_t thread) noexcept {
            (*static_cast<const Task*>(context))(thread);
        }, &task);
    }

    // In a task, called equally often by every thread: returns when all have called it. What a
    // thread wrote before is seen by all after.
    void barrier() noexcept;

    // In a task: counts a step that others wait for. What the thread wrote before is seen by them after.
    void advance(Progress& progress) noexcept;
    // In a task: returns when so many steps are counted.
    void wait_for(const Progress& progress, std::size_t least) noexcept;

private:
    using Function = void (*)(const void* context, std::size_t thread) noexcept;

    void run(Function function, const void* context);
    void work(std::size_t thread);
    void stop() noexcept;
    template <typename Condition>
    void wait_until(Condition holds, std::chrono::microseconds patience) noexcept;
    void wake_sleepers() noexcept;
    bool is_forked() const noexcept;

    // The other threads, and where those sleep that have nothing to do.
    struct Others {
        std::mutex sleep;
        std::condition_variable wake;
        std::vector<std::thread> workers;
    };

    const std::size_t threads_;
    const std::int64_t process_;  // that has the threads
    std::vector<int> cores_;  // of thread i: cores_[i % size]; empty: not pinned
    ProcessMutex caller_;     // held by the one who runs a task

    // What is run. Written before task_ changes, read after.
    Function function_ = nullptr;
    const void* context_ = nullptr;
    bool stops_ = false;

    alignas(64) std::atomic<std::uint32_t> task_{0};  // counts tasks
    alignas(64) std::atomic<std::size_t> running_{0};  // workers that have not finished this one
    alignas(64) std::atomic<std::size_t> arrived_{0};  // at the barrier
    alignas(64) std::atomic<std::uint32_t> phase_{0};  // counts barriers

    alignas(64) std::atomic<std::size_t> sleepers_{0};
    std::unique_ptr<Others> others_ = std::make_unique<Others>();
};

// Items [first, second) of `count` that are this thread's share. Shares differ by one at most; what
// is over goes to the caller first, who need not wake up.
inline std::pair<std::size_t, std::size_t> share(std::size_t count, std::size_t thread,
                                                 std::size_t threads) {
    const auto start = [&](std::size_t of) { return (count * of + threads - 1) / threads; };
    return {start(thread), start(thread + 1)};
}

}  // namespace secondpass
