#include "output_layer.h"

#include <cstring>

#include "pool.h"

namespace secondpass {

void OutputLayer::answer(std::size_t first, std::size_t count, const Rows& hidden,
                         const OutputScratch& scratch) const noexcept {
    float log_sum[kRowBlock];
    batch_.questions.answer(kernels_, weight_, hidden, first, count, scratch, log_prob_, log_sum);
    keep(first, count, hidden, log_sum);
}

void OutputLayer::keep(std::size_t first, std::size_t count, const Rows& hidden,
                       const float* log_sum) const noexcept {
    const std::size_t columns = padded_columns(weight_);
    for (std::size_t r = 0; r < count; ++r) {
        const Row& row = batch_.rows[first + r];
        const std::size_t slot = static_cast<std::size_t>(row.slot);
        const Rows& kept = row.tree->hidden();
        std::memcpy(kept.codes + slot * columns, hidden.codes + r * columns, columns);
        kept.step[slot] = hidden.step[r];
        row.tree->log_sum()[slot] = log_sum[r];
    }
}

void OutputLayer::answer_late(std::size_t thread, std::size_t threads) const noexcept {
    const auto [begin, end] = share(batch_.late.size(), thread, threads);
    for (std::size_t i = begin; i < end; ++i) {
        const LateQuestion& question = batch_.late[i];
        const std::size_t slot = static_cast<std::size_t>(question.slot);
        const float logit = kernels_.logit({weight_, question.tree->hidden(), slot,
                                            static_cast<std::size_t>(question.token)});
        log_prob_[question.answer] = logit - question.tree->log_sum()[slot];
    }
}

}  // namespace secondpass
