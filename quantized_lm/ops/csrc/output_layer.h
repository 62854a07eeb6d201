// The last step of a forward pass: log-probabilities from hidden states.
#pragma once

#include <cstddef>

#include "batch.h"
#include "kernels.h"

namespace secondpass {

class OutputLayer {
public:
    OutputLayer(const Kernels& kernels, const Weight& weight, Batch& batch, float* log_prob)
        : kernels_(kernels), weight_(weight), batch_(batch), log_prob_(log_prob) {}

    // Answers what is asked about `count` rows of the batch from `first` on, once for each row, and keeps in
    // their trees what children need that come later. Blocks of rows may be answered by several threads.
    //   hidden those `count` rows, at most kRowBlock
    void answer(std::size_t first, std::size_t count, const Rows& hidden,
                const OutputScratch& scratch) const noexcept;

    // This thread's share of the questions about nodes that were run before.
    void answer_late(std::size_t thread, std::size_t threads) const noexcept;

private:
    void keep(std::size_t first, std::size_t count, const Rows& hidden,
              const float* log_sum) const noexcept;

    const Kernels& kernels_;
    const Weight& weight_;
    Batch& batch_;
    float* const log_prob_;  // as the batch numbers its answers
};

}  // namespace secondpass
