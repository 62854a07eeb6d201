// A growing tree of tokens, and what its nodes that were run left behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "process_mutex.h"

namespace secondpass {

// Memory of trees, which is used again when they end: the system takes longer to hand out fresh
// pages than kernels take to fill them. Keeps no more than twice what was in use lately, and the
// largest of it, which serve trees of any size. May be used by several threads.
class Spares {
public:
    using Memory = std::unique_ptr<std::byte, Free>;

    // At least `bytes`, how many it is in `taken`: `most` or fewer. Throws std::bad_alloc.
    Memory take(std::size_t bytes, std::size_t most, std::size_t* taken);
    void give_back(Memory memory, std::size_t bytes) noexcept;

private:
    struct Spare {
        Memory memory;
        std::size_t bytes;
    };

    // The smallest that holds so many bytes, or the end.
    std::vector<Spare>::iterator smallest(std::size_t bytes) noexcept;

    ProcessMutex mutex_;
    std::vector<Spare> spares_;  // smallest first
    std::size_t spare_bytes_ = 0;
    std::size_t used_bytes_ = 0;
    std::size_t lately_used_bytes_ = 0;  // the most, fading as memory is taken
};

// What one run node leaves behind. Once a node is run, a child needs no more:
//   per layer   row_floats floats: keys and values as kernels.h's `split` writes them, or h and c as
//               `cell` does
//   its hidden row, codes and step for the output layer, and the log-sum-exp of its logits
struct StoredSizes {
    std::size_t layers;
    std::size_t row_floats;
    std::size_t columns;  // codes of a hidden row
};

inline StoredSizes stored_sizes(const Weight& output, std::size_t layers, std::size_t row_floats) {
    return {layers, row_floats, padded_columns(output)};
}

constexpr std::int32_t kNotRun = -1;

struct Node {
    std::int32_t token;
    std::int32_t parent;  // -1 for the root
    std::int32_t depth;   // 0 for the root
    std::int32_t slot;    // index of what it stored, kNotRun if it was not run
};

// How long a tree lives: whether it may hold more memory than it needs.
enum class Life { kShort, kLong };

class Tree {
public:
    Tree(const StoredSizes& sizes, std::shared_ptr<Spares> spares, Life life);
    ~Tree();
    Tree(const Tree&) = delete;
    Tree& operator=(const Tree&) = delete;

    // Whether its memory comes from there: trees of one model share their spares.
    bool uses(const Spares& spares) const noexcept { return spares_.get() == &spares; }

    std::size_t size() const noexcept { return nodes_.size(); }
    std::size_t run_nodes() const noexcept { return run_nodes_; }
    Node& node(std::size_t index) noexcept { return nodes_[index]; }
    const Node& node(std::size_t index) const noexcept { return nodes_[index]; }

    // The parent exists, or is -1 for the first node.
    void append(std::int32_t parent, std::int32_t token);
    // Forgets the nodes from `size` on, none of which was run.
    void truncate(std::size_t size) noexcept { nodes_.resize(size); }

    // Makes room for more run nodes. Moves what is stored, so pointers into it are lost.
    void reserve(std::size_t more);
    // Counts nodes whose slots were filled.
    void add_run_nodes(std::size_t count) noexcept { run_nodes_ += count; }

    // Copies other's nodes here, with what they stored; this tree is empty. The first of `nodes` is the root, and
    // each stands after its parent. Throws std::invalid_argument where that is not so.
    void copy(const Tree& other, const std::int32_t* nodes, std::size_t count);

    // Memory of what is stored, in bytes.
    std::size_t bytes() const noexcept { return bytes_ + nodes_.capacity() * sizeof(Node); }

    // Whether an earlier call filled this slot.
    bool is_stored(std::int32_t slot) const noexcept {
        return slot >= 0 && static_cast<std::size_t>(slot) < run_nodes_;
    }
    float* layer(std::size_t layer) const noexcept {
        return stored_ + layer * capacity_ * sizes_.row_floats;
    }
    float* stored(std::size_t layer, std::int32_t slot) const noexcept {
        return this->layer(layer) + static_cast<std::size_t>(slot) * sizes_.row_floats;
    }
    const Rows& hidden() const noexcept { return hidden_; }
    float* log_sum() const noexcept { return log_sum_; }

private:
    std::size_t bytes_for(std::size_t rows) const noexcept;
    void move_into(std::byte* memory, std::size_t capacity) noexcept;

    const StoredSizes sizes_;
    const std::shared_ptr<Spares> spares_;
    const Life life_;
    std::vector<Node> nodes_;
    std::size_t run_nodes_ = 0;
    std::size_t capacity_ = 0;  // rows there is room for
    Spares::Memory memory_;
    std::size_t bytes_ = 0;
    // Into memory_:
    float* stored_ = nullptr;  // (layers, capacity, row_floats)
    float* log_sum_ = nullptr;
    Rows hidden_{nullptr, nullptr, nullptr};  // `logit` reads no start
};

}  // namespace secondpass
