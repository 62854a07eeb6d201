#include "tree.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace secondpass {
namespace {

constexpr std::size_t kMostSpareBytes = std::size_t{256} << 20;
// Of what was used lately, this many times is kept: memory of several sizes comes back in any order.
constexpr std::size_t kSpareTimes = 2;
// For a tree that lives long a spare up to this many times too large is better than fresh memory.
constexpr std::size_t kWaste = 2;
// Each taking forgets this part of what was used lately.
constexpr std::size_t kFading = 16;

std::size_t whole_lines(std::size_t bytes) { return ceil_divide(bytes, kAlignment) * kAlignment; }

}  // namespace

Spares::Memory Spares::take(std::size_t bytes, std::size_t most, std::size_t* taken) {
    const std::lock_guard<ProcessMutex> lock(mutex_);
    const auto best = smallest(bytes);
    Memory memory;
    *taken = bytes;
    if (best == spares_.end() || best->bytes > most) {
        memory.reset(static_cast<std::byte*>(allocate(bytes)));
    } else {
        memory = std::move(best->memory);
        *taken = best->bytes;
        spare_bytes_ -= best->bytes;
        spares_.erase(best);
    }
    used_bytes_ += *taken;
    lately_used_bytes_ = std::max(used_bytes_, lately_used_bytes_ - lately_used_bytes_ / kFading);
    return memory;
}

void Spares::give_back(Memory memory, std::size_t bytes) noexcept {
    if (memory == nullptr || mutex_.is_left()) return;
    const std::lock_guard<ProcessMutex> lock(mutex_);
    used_bytes_ -= bytes;
    const std::size_t most = std::min(kSpareTimes * lately_used_bytes_, kMostSpareBytes);
    if (bytes > most) return;  // it would drive out all others
    try {
        spares_.insert(smallest(bytes), {std::move(memory), bytes});
        spare_bytes_ += bytes;
    } catch (const std::bad_alloc&) {  // then it is not kept
    }
    auto first_kept = spares_.begin();
    for (; spare_bytes_ > most; ++first_kept) spare_bytes_ -= first_kept->bytes;
    spares_.erase(spares_.begin(), first_kept);
}

std::vector<Spares::Spare>::iterator Spares::smallest(std::size_t bytes) noexcept {
    return std::find_if(spares_.begin(), spares_.end(),
                        [&](const Spare& spare) { return spare.bytes >= bytes; });
}

Tree::Tree(const StoredSizes& sizes, std::shared_ptr<Spares> spares, Life life)
    : sizes_(sizes), spares_(std::move(spares)), life_(life) {}

Tree::~Tree() { spares_->give_back(std::move(memory_), bytes_); }

void Tree::append(std::int32_t parent, std::int32_t token) {
    const std::int32_t depth =
        parent < 0 ? 0 : nodes_[static_cast<std::size_t>(parent)].depth + 1;
    nodes_.push_back({token, parent, depth, kNotRun});
}

void Tree::reserve(std::size_t more) {
    const std::size_t needed = run_nodes_ + more;
    if (needed <= capacity_) return;
    // Half as much again, so that a tree that grows node by node is not copied each time; a first
    // call gets what it asks for, because most trees see no second one.
    const std::size_t capacity = std::max(needed, capacity_ + capacity_ / 2);
    std::size_t bytes = bytes_for(capacity);
    const std::size_t most = life_ == Life::kLong ? kWaste * bytes : static_cast<std::size_t>(-1);
    Spares::Memory memory = spares_->take(bytes, most, &bytes);
    move_into(memory.get(), capacity);
    std::swap(memory, memory_);
    std::swap(bytes, bytes_);
    spares_->give_back(std::move(memory), bytes);
}

void Tree::copy(const Tree& other, const std::int32_t* nodes, std::size_t count) {
    if (count == 0) throw std::invalid_argument("there are no nodes; need the root first");
    std::vector<std::int32_t> place(other.size(), -1);  // of other's nodes here
    std::vector<std::int32_t> slots;                    // of other's that are copied
    nodes_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        const std::int32_t from = nodes[i];
        const bool exists = from >= 0 && static_cast<std::size_t>(from) < other.size();
        const std::int32_t above = exists ? other.node(static_cast<std::size_t>(from)).parent : 0;
        if (!exists || place[static_cast<std::size_t>(from)] >= 0 || (above < 0) != (i == 0) ||
            (above >= 0 && place[static_cast<std::size_t>(above)] < 0))
            throw std::invalid_argument("node " + std::to_string(from) + " stands at " +
                                        std::to_string(i) +
                                        "; need the root first, and each once and after its parent");
        const Node& node = other.node(static_cast<std::size_t>(from));
        place[static_cast<std::size_t>(from)] = static_cast<std::int32_t>(i);
        append(above < 0 ? -1 : place[static_cast<std::size_t>(above)], node.token);
        if (!other.is_stored(node.slot)) continue;
        nodes_.back().slot = static_cast<std::int32_t>(slots.size());
        slots.push_back(node.slot);
    }
    reserve(slots.size());
    run_nodes_ = slots.size();
    for (std::size_t to = 0; to < slots.size(); ++to) {
        const auto from = static_cast<std::size_t>(slots[to]);
        for (std::size_t layer = 0; layer < sizes_.layers; ++layer)
            std::memcpy(this->layer(layer) + to * sizes_.row_floats,
                        other.layer(layer) + from * sizes_.row_floats,
                        sizes_.row_floats * sizeof(float));
        std::memcpy(hidden_.codes + to * sizes_.columns,
                    other.hidden_.codes + from * sizes_.columns,
                    sizes_.columns * sizeof(*hidden_.codes));
        hidden_.step[to] = other.hidden_.step[from];
        log_sum_[to] = other.log_sum_[from];
    }
}

std::size_t Tree::bytes_for(std::size_t rows) const noexcept {
    return whole_lines(sizes_.layers * rows * sizes_.row_floats * sizeof(float)) +
           whole_lines(rows * sizes_.columns) + whole_lines(rows * sizeof(float)) * 2;
}

void Tree::move_into(std::byte* memory, std::size_t capacity) noexcept {
    // The next part of `memory`, for `count` items a row, with the rows there are.
    const auto move = [&](auto*& from, std::size_t count, std::size_t layers) {
        using Item = std::remove_reference_t<decltype(*from)>;
        auto* to = reinterpret_cast<Item*>(memory);
        for (std::size_t layer = 0; layer < layers && run_nodes_ > 0; ++layer)
            std::memcpy(to + layer * capacity * count, from + layer * capacity_ * count,
                        run_nodes_ * count * sizeof(Item));
        memory += whole_lines(layers * capacity * count * sizeof(Item));
        from = to;
    };
    move(stored_, sizes_.row_floats, sizes_.layers);
    move(hidden_.codes, sizes_.columns, 1);
    move(hidden_.step, 1, 1);
    move(log_sum_, 1, 1);
    capacity_ = capacity;
}

}  // namespace secondpass
