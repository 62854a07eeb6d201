#include "pool.h"

#include <stdexcept>

#if defined(__linux__)
#include <sched.h>
#endif

namespace secondpass {
namespace {

// Looks at a condition between two looks at the clock.
constexpr int kSpins = 64;
// Before a worker without a task sleeps.
constexpr std::chrono::microseconds kIdlePatience{50};
// Before a thread sleeps in a task: much longer than shares of work differ, and than waking takes.
constexpr std::chrono::microseconds kTaskPatience{500};

inline void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__linux__)
// Core numbers above 1023 are not seen: cpu_set_t ends there.
std::vector<int> allowed_cores() {
    std::vector<int> cores;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return cores;
    for (int core = 0; core < CPU_SETSIZE; ++core)
        if (CPU_ISSET(core, &allowed)) cores.push_back(core);
    return cores;
}

// Keeps the calling thread on one core while it lives. A core that has been taken away is no error:
// pinning only saves time.
class Pin {
public:
    Pin(const std::vector<int>& cores, std::size_t thread) noexcept
        : is_on_(!cores.empty() && sched_getaffinity(0, sizeof(before_), &before_) == 0) {
        if (!is_on_) return;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cores[thread % cores.size()], &one);
        is_on_ = sched_setaffinity(0, sizeof(one), &one) == 0;
    }
    ~Pin() {
        if (is_on_) sched_setaffinity(0, sizeof(before_), &before_);
    }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;

private:
    cpu_set_t before_;
    bool is_on_;
};
#else
std::vector<int> allowed_cores() { return {}; }

struct Pin {
    Pin(const std::vector<int>&, std::size_t) noexcept {}
};
#endif

}  // namespace

Pool::Pool(std::size_t threads, bool pins)
    : threads_(threads),
      process_(this_process()),
      cores_(pins ? allowed_cores() : std::vector<int>()) {
    try {
        for (std::size_t thread = 1; thread < threads; ++thread)
            others_->workers.emplace_back([this, thread] { work(thread); });
    } catch (...) {  // no more threads to be had: end those there are
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() noexcept {
    if (is_forked()) {
        // Nobody is there to join, and a condition variable is not destroyed while it has sleepers.
        static_cast<void>(others_.release());
        return;
    }
    stops_ = true;
    task_.fetch_add(1);
    wake_sleepers();
    for (std::thread& worker : others_->workers) worker.join();
}

bool Pool::is_forked() const noexcept { return threads_ > 1 && this_process() != process_; }

void Pool::run(Function function, const void* context) {
    if (is_forked())
        throw std::runtime_error(
            "the thread pool was made before this process was forked; load the model after the "
            "fork");
    const std::lock_guard<ProcessMutex> caller(caller_);
    const Pin pin(cores_, 0);
    function_ = function;
    context_ = context;
    running_.store(threads_ - 1);
    if (threads_ > 1) {
        task_.fetch_add(1);
        wake_sleepers();
    }
    function(context, 0);
    wait_until([this] { return running_.load() == 0; }, kTaskPatience);
}

void Pool::work(std::size_t thread) {
    const Pin pin(cores_, thread);
    for (std::uint32_t task = 0;; ++task) {
        wait_until([&] { return task_.load() != task; }, kIdlePatience);
        if (stops_) return;
        function_(context_, thread);
        if (running_.fetch_sub(1) == 1) wake_sleepers();
    }
}

void Pool::barrier() noexcept {
    const std::uint32_t phase = phase_.load();
    if (arrived_.fetch_add(1) + 1 == threads_) {
        arrived_.store(0);
        phase_.store(phase + 1);
        wake_sleepers();
        return;
    }
    wait_until([&] { return phase_.load() != phase; }, kTaskPatience);
}

void Pool::advance(Progress& progress) noexcept {
    progress.fetch_add(1);
    wake_sleepers();
}

void Pool::wait_for(const Progress& progress, std::size_t least) noexcept {
    wait_until([&] { return progress.load() >= least; }, kTaskPatience);
}

template <typename Condition>
void Pool::wait_until(Condition holds, std::chrono::microseconds patience) noexcept {
    const auto start = std::chrono::steady_clock::now();
    do {
        for (int spin = 0; spin < kSpins; ++spin) {
            if (holds()) return;
            pause();
        }
        std::this_thread::yield();
    } while (std::chrono::steady_clock::now() - start < patience);
    // Either the condition is seen to hold below, or who makes it hold sees a sleeper: both sides
    // write before they read, in the one order that sequentially consistent operations have.
    sleepers_.fetch_add(1);
    std::unique_lock<std::mutex> lock(others_->sleep);
    others_->wake.wait(lock, holds);
    sleepers_.fetch_sub(1);
}

void Pool::wake_sleepers() noexcept {
    if (sleepers_.load() == 0) return;
    // Not between a sleeper's look at its condition and its sleep.
    { const std::lock_guard<std::mutex> lock(others_->sleep); }
    others_->wake.notify_all();
}

}  // namespace secondpass
