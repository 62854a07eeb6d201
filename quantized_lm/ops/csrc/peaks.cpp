// Loops that do nothing but one instruction, as often as the CPU can, and the clock around them.
//
// Every loop keeps more results in flight than latency times issue width, in registers. An empty asm
// statement claims to change each result, so that the compiler can neither fold nor drop the loop.
// Each function is compiled for the instructions it names and is only called where the CPU has
// them; the rest of the file is compiled for any CPU and may use the standard library.
#include "peaks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#pragma GCC diagnostic push
// GCC 12's own AVX-512 header trips this warning (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace secondpass {
namespace {

// Runs one loop's body `count` times on a thread's own memory (loops that only compute ignore it).
using Loop = void (*)(std::size_t count, const std::byte* memory, std::size_t bytes);

struct Meter {
    const char* name;
    const char* unit;
    double per_count;   // units in one turn of the loop
    std::size_t count;  // turns in a burst
    std::size_t bytes;  // memory of each thread
    Loop loop;
};

constexpr std::size_t kTurns = 400'000;            // about a millisecond of arithmetic
constexpr std::size_t kBurstBytes = 32u << 20;     // about a millisecond of reading
constexpr std::size_t kLine = 64;

#if defined(__x86_64__)

#define TARGET(isa) __attribute__((target(isa)))
#define TWELVE(STEP) STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) \
    STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)
#define SIXTEEN(STEP) TWELVE(STEP) STEP(12) STEP(13) STEP(14) STEP(15)
#define ZERO(i) auto sum##i = zero;
// "x" is any SSE or AVX register, "v" any AVX-512 one.
#define TOUCH(kind, value) asm volatile("" : "+" kind(value))

TARGET("avx2,fma") void fma_256(std::size_t count, const std::byte*, std::size_t) {
    const __m256 zero = _mm256_setzero_ps();
    __m256 a = zero, b = zero;
    TOUCH("x", a); TOUCH("x", b);
    TWELVE(ZERO)
    for (; count > 0; --count) {
#define STEP(i) sum##i = _mm256_fmadd_ps(a, b, sum##i); TOUCH("x", sum##i);
        TWELVE(STEP)
#undef STEP
    }
}

TARGET("avx2") void maddubs_256(std::size_t count, const std::byte*, std::size_t) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i a = zero, b = zero, ones = _mm256_set1_epi16(1);
    TOUCH("x", a); TOUCH("x", b); TOUCH("x", ones);
    TWELVE(ZERO)
    for (; count > 0; --count) {
        // The factor is touched too: a product that never changes would be computed before the loop.
#define STEP(i) { TOUCH("x", a); \
        __m256i product = _mm256_maddubs_epi16(a, b); TOUCH("x", product); \
        sum##i = _mm256_add_epi32(sum##i, _mm256_madd_epi16(product, ones)); TOUCH("x", sum##i); }
        TWELVE(STEP)
#undef STEP
    }
}

TARGET("avx2,avxvnni") void dpbusd_256(std::size_t count, const std::byte*, std::size_t) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i a = zero, b = zero;
    TOUCH("x", a); TOUCH("x", b);
    TWELVE(ZERO)
    for (; count > 0; --count) {
#define STEP(i) sum##i = _mm256_dpbusd_avx_epi32(sum##i, a, b); TOUCH("x", sum##i);
        TWELVE(STEP)
#undef STEP
    }
}

// A byte of a look-up table holds the sum of four activations, so a look-up is eight operations.
TARGET("avx2") void vpshufb_256(std::size_t count, const std::byte*, std::size_t) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i table = zero, codes = zero, high = zero;
    TOUCH("x", table); TOUCH("x", codes); TOUCH("x", high);
    TWELVE(ZERO)
    for (; count > 0; --count) {
// Both additions go to one sum: there are too few registers for two. Codes are touched too, as above the
// factor is.
#define STEP(i) { TOUCH("x", codes); \
        __m256i found = _mm256_shuffle_epi8(table, codes); TOUCH("x", found); \
        sum##i = _mm256_add_epi16(sum##i, found); TOUCH("x", sum##i); \
        high = _mm256_srli_epi16(found, 8); TOUCH("x", high); \
        sum##i = _mm256_add_epi16(sum##i, high); TOUCH("x", sum##i); }
        TWELVE(STEP)
#undef STEP
    }
}

TARGET("avx512f") void fma_512(std::size_t count, const std::byte*, std::size_t) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 a = zero, b = zero;
    TOUCH("v", a); TOUCH("v", b);
    SIXTEEN(ZERO)
    for (; count > 0; --count) {
#define STEP(i) sum##i = _mm512_fmadd_ps(a, b, sum##i); TOUCH("v", sum##i);
        SIXTEEN(STEP)
#undef STEP
    }
}

TARGET("avx512f,avx512bf16") void dpbf16_512(std::size_t count, const std::byte*, std::size_t) {
    const __m512 zero = _mm512_setzero_ps();
    __m512i bits = _mm512_setzero_si512();
    TOUCH("v", bits);
    const __m512bh a = (__m512bh)bits;
    SIXTEEN(ZERO)
    for (; count > 0; --count) {
#define STEP(i) sum##i = _mm512_dpbf16_ps(sum##i, a, a); TOUCH("v", sum##i);
        SIXTEEN(STEP)
#undef STEP
    }
}

TARGET("avx512f,avx512vnni") void dpbusd_512(std::size_t count, const std::byte*, std::size_t) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i a = zero, b = zero;
    TOUCH("v", a); TOUCH("v", b);
    SIXTEEN(ZERO)
    for (; count > 0; --count) {
#define STEP(i) sum##i = _mm512_dpbusd_epi32(sum##i, a, b); TOUCH("v", sum##i);
        SIXTEEN(STEP)
#undef STEP
    }
}

TARGET("avx512f,avx512vbmi,avx512vnni")
void vpermb_dpbusd_512(std::size_t count, const std::byte*, std::size_t) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i table = zero, codes = zero, ones = _mm512_set1_epi8(1);
    TOUCH("v", table); TOUCH("v", codes); TOUCH("v", ones);
    SIXTEEN(ZERO)
    for (; count > 0; --count) {
// Codes are touched too: a look-up that never changes would be done once, before the loop.
#define STEP(i) { TOUCH("v", codes); \
        __m512i found = _mm512_permutexvar_epi8(codes, table); TOUCH("v", found); \
        sum##i = _mm512_dpbusd_epi32(sum##i, found, ones); TOUCH("v", sum##i); }
        SIXTEEN(STEP)
#undef STEP
    }
}

TARGET("avx2") void read_256(std::size_t count, const std::byte* memory, std::size_t bytes) {
    __m256i value = _mm256_setzero_si256();
    for (; count > 0; --count)
        for (std::size_t at = 0; at < bytes; at += 4 * sizeof(__m256i)) {
            const __m256i* place = reinterpret_cast<const __m256i*>(memory + at);
#define STEP(i) value = _mm256_load_si256(place + i); TOUCH("x", value);
            STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
        }
}

TARGET("avx512f") void read_512(std::size_t count, const std::byte* memory, std::size_t bytes) {
    __m512i value = _mm512_setzero_si512();
    for (; count > 0; --count)
        for (std::size_t at = 0; at < bytes; at += 4 * sizeof(__m512i)) {
            const __m512i* place = reinterpret_cast<const __m512i*>(memory + at);
#define STEP(i) value = _mm512_load_si512(place + i); TOUCH("v", value);
            STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
        }
}

#undef ZERO
#undef SIXTEEN
#undef TWELVE

#endif

void read_words(std::size_t count, const std::byte* memory, std::size_t bytes) {
    const std::uint64_t* words = reinterpret_cast<const std::uint64_t*>(memory);
    for (; count > 0; --count)
        for (std::size_t at = 0; at < bytes / sizeof(std::uint64_t); ++at) {
            std::uint64_t value = words[at];
            asm volatile("" : "+r"(value));
        }
}

void add_arithmetic(std::vector<Meter>& meters) {
#if defined(__x86_64__)
    const auto add = [&](const char* name, double operations, Loop loop) {
        meters.push_back({name, "op", operations, kTurns, 0, loop});
    };
    // Operations of a turn: results in flight, numbers in a register, products in a number, two each.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        add("float32 FMA, 256 bits", 12 * 8 * 2, fma_256);
        add("int8 maddubs + madd + add, 256 bits", 12 * 8 * 4 * 2, maddubs_256);
        add("1-bit look-up vpshufb + add + shift + add, 256 bits", 12 * 32 * 4 * 2, vpshufb_256);
    }
    if (__builtin_cpu_supports("avxvnni"))
        add("int8 dpbusd, 256 bits", 12 * 8 * 4 * 2, dpbusd_256);
    if (__builtin_cpu_supports("avx512f")) add("float32 FMA, 512 bits", 16 * 16 * 2, fma_512);
    if (__builtin_cpu_supports("avx512bf16"))
        add("bfloat16 dpbf16, 512 bits", 16 * 16 * 2 * 2, dpbf16_512);
    if (__builtin_cpu_supports("avx512vnni")) {
        add("int8 dpbusd, 512 bits", 16 * 16 * 4 * 2, dpbusd_512);
        if (__builtin_cpu_supports("avx512vbmi"))
            add("1-bit look-up vpermb + dpbusd, 512 bits", 16 * 64 * 4 * 2, vpermb_dpbusd_512);
    }
#else
    static_cast<void>(meters);
#endif
}

Loop best_read() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_512;
    if (__builtin_cpu_supports("avx2")) return read_256;
#endif
    return read_words;
}

std::vector<Meter> meters() {
    std::vector<Meter> meters;
    add_arithmetic(meters);
    const struct { const char* name; std::size_t bytes; } reads[] = {
        {"read, 16 KiB a thread", 16u << 10},
        {"read, 512 KiB a thread", 512u << 10},
        {"read, 8 MiB a thread", 8u << 20},
        {"read, 128 MiB a thread", 128u << 20},
    };
    for (const auto& read : reads) {
        const std::size_t count = std::max<std::size_t>(kBurstBytes / read.bytes, 1);
        meters.push_back({read.name, "byte", static_cast<double>(read.bytes), count, read.bytes,
                          best_read()});
    }
    return meters;
}

using Clock = std::chrono::steady_clock;

struct Lap {
    Clock::time_point start;
    Clock::time_point end;
};

// All threads start each burst together.
class Barrier {
public:
    explicit Barrier(std::size_t threads) : threads_(threads) {}

    void wait(std::size_t burst) {
        arrived_.fetch_add(1);
        while (arrived_.load() < (burst + 1) * threads_) {
        }
    }

private:
    const std::size_t threads_;
    std::atomic<std::size_t> arrived_{0};
};

void run_bursts(const Meter& meter, std::vector<Lap>& laps, Barrier& barrier) {
    // Written to, so that every page has memory of its own; a little longer, to be aligned.
    std::vector<std::byte> memory(meter.bytes + kLine, std::byte{1});
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory.data()) % kLine;
    const std::byte* aligned = memory.data() + (kLine - past);
    for (std::size_t burst = 0; burst < laps.size(); ++burst) {
        barrier.wait(burst);
        laps[burst].start = Clock::now();
        meter.loop(meter.count, aligned, meter.bytes);
        laps[burst].end = Clock::now();
    }
}

// Units per second of the best burst: from the first thread's start to the last one's end.
double best_rate(const Meter& meter, std::size_t threads, std::size_t bursts) {
    std::vector<std::vector<Lap>> laps(threads, std::vector<Lap>(bursts));
    Barrier barrier(threads);
    std::vector<std::thread> others;
    for (std::size_t thread = 1; thread < threads; ++thread)
        others.emplace_back([&, thread] { run_bursts(meter, laps[thread], barrier); });
    run_bursts(meter, laps[0], barrier);
    for (std::thread& other : others) other.join();
    double best = 0;
    for (std::size_t burst = 0; burst < bursts; ++burst) {
        Lap all = laps[0][burst];
        for (const std::vector<Lap>& own : laps) {
            all.start = std::min(all.start, own[burst].start);
            all.end = std::max(all.end, own[burst].end);
        }
        const double seconds = std::chrono::duration<double>(all.end - all.start).count();
        const double units = meter.per_count * static_cast<double>(meter.count * threads);
        best = std::max(best, units / seconds);
    }
    return best;
}

}  // namespace

std::vector<Peak> measure_peaks(std::size_t threads, std::size_t bursts, const std::string& only) {
    std::vector<Peak> peaks;
    for (const Meter& meter : meters())
        if (only.empty() || only == meter.name)
            peaks.push_back({meter.name, meter.unit, best_rate(meter, threads, bursts)});
    return peaks;
}

}  // namespace secondpass
