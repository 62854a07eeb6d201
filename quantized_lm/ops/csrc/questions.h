// Logits that are asked for, in an order in which they can be answered block by block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace secondpass {

// What `output` needs besides the questions; see OutputArgs.
struct OutputScratch {
    float* tile;
    std::uint8_t* tables;
};

class Questions {
public:
    void add(std::int64_t token, std::size_t row, std::size_t answer) {
        questions_.push_back({static_cast<std::int32_t>(token), static_cast<std::int32_t>(row),
                              static_cast<std::int64_t>(answer)});
    }

    // After the last one was added. row_count is above every row.
    void sort_by_row(std::size_t row_count);

    // log_prob[answer] = logit - log_sum of the row, for all questions about `count` rows from
    // `first` on. Once for each row; blocks of rows may be answered by several threads.
    //   rows    those `count` rows; count at most kRowBlock
    //   log_sum (count,) float32, written
    void answer(const Kernels& kernels, const Weight& weight, const Rows& rows, std::size_t first,
                std::size_t count, const OutputScratch& scratch, float* log_prob,
                float* log_sum) noexcept;

private:
    std::vector<Question> questions_;
    std::vector<std::size_t> first_of_row_;
};

}  // namespace secondpass
