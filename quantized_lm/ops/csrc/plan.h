// Packed models as data, their weights shared with whoever packed them.
// quantized_lm/models/plan.py says what they compute.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace secondpass {

// A weight and whatever keeps its arrays alive.
struct SharedWeight {
    Weight weight{};
    std::shared_ptr<const void> memory;
};

// A copy of float numbers, or null. Zeros follow up to a whole panel, which kernels may read.
class Floats {
public:
    Floats() = default;
    Floats(const float* numbers, std::size_t count)
        : memory_(static_cast<float*>(allocate(padded(count) * sizeof(float))), Free()),
          count_(count) {
        std::memcpy(memory_.get(), numbers, count * sizeof(float));
        std::memset(memory_.get() + count, 0, (padded(count) - count) * sizeof(float));
    }

    const float* data() const noexcept { return memory_.get(); }
    std::size_t count() const noexcept { return count_; }

private:
    static std::size_t padded(std::size_t count) { return ceil_divide(count, kPanel) * kPanel; }

    std::shared_ptr<float> memory_;
    std::size_t count_ = 0;
};

struct NormPlan {
    Floats gain;  // (K,) or null
    Floats bias;  // (K,) or null
    float epsilon = 0.0f;
    bool subtracts_mean = false;

    Norm norm() const noexcept { return {gain.data(), bias.data(), epsilon, subtracts_mean}; }
};

struct ProjectionPlan {
    SharedWeight weight;
    Floats bias;  // (padded_rows,) or null
};

struct BlockPlan {
    NormPlan attention_norm;
    NormPlan ffn_norm;
    ProjectionPlan qkv;
    ProjectionPlan out;
    ProjectionPlan up;
    ProjectionPlan down;
    float mix_stream = 1.0f;
    float mix_embedding = 0.0f;
};

struct TransformerPlan {
    std::size_t model_dim = 0;
    std::size_t num_heads = 0;
    std::size_t ffn_dim = 0;
    std::size_t max_tokens = 0;
    SharedWeight embedding;
    Floats positions;  // (max_tokens + 1, model_dim) or null
    Floats cos;        // (max_tokens + 1, head_dim / 2) or null, as is sin
    Floats sin;
    bool normalizes_embedding = false;
    bool normalizes_qk = false;
    float norm_epsilon = 0.0f;
    Activation activation = Activation::kNone;
    std::vector<BlockPlan> blocks;
    NormPlan final_norm;
};

constexpr std::size_t kGates = 4;  // i, f, g, o

struct LstmLayerPlan {
    std::array<ProjectionPlan, kGates> input;
    std::array<ProjectionPlan, kGates> recurrent;
};

struct LstmPlan {
    std::size_t model_dim = 0;
    std::size_t max_tokens = 0;
    SharedWeight embedding;
    std::vector<LstmLayerPlan> layers;
};

}  // namespace secondpass
