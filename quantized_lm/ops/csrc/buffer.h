// Memory as kernels want it: on a cache line, and with room to be overrun by a vector.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "kernels.h"

namespace secondpass {

struct Free {
    void operator()(void* memory) const noexcept { std::free(memory); }
};

// `bytes` and kAlignment more. Throws std::bad_alloc.
inline void* allocate(std::size_t bytes) {
    const std::size_t lines = ceil_divide(bytes, kAlignment) + 1;
    void* memory = std::aligned_alloc(kAlignment, lines * kAlignment);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

// Scratch of at least as many items as were last asked for. Growing it loses what it held.
template <typename Item>
class Buffer {
    static_assert(std::is_trivial<Item>::value, "items are never constructed");

public:
    Item* data() const noexcept { return memory_.get(); }

    void require(std::size_t count) {
        if (count <= count_ && memory_ != nullptr) return;
        memory_.reset();  // first, so that both are never there at once
        count_ = 0;
        memory_.reset(static_cast<Item*>(allocate(count * sizeof(Item))));
        count_ = count;
    }

private:
    std::unique_ptr<Item, Free> memory_;
    std::size_t count_ = 0;
};

}  // namespace secondpass
