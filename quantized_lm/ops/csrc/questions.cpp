#include "questions.h"

#include <algorithm>
#include <utility>

namespace secondpass {

void Questions::sort_by_row(std::size_t row_count) {
    first_of_row_.assign(row_count + 1, 0);
    for (const Question& question : questions_)
        ++first_of_row_[static_cast<std::size_t>(question.row) + 1];
    for (std::size_t row = 0; row < row_count; ++row)
        first_of_row_[row + 1] += first_of_row_[row];
    std::vector<std::size_t> next(first_of_row_);
    std::vector<Question> sorted(questions_.size());
    for (const Question& question : questions_)
        sorted[next[static_cast<std::size_t>(question.row)]++] = question;
    questions_ = std::move(sorted);
}

void Questions::answer(const Kernels& kernels, const Weight& weight, const Rows& rows,
                       std::size_t first, std::size_t count, const OutputScratch& scratch,
                       float* log_prob, float* log_sum) noexcept {
    Question* begin = questions_.data() + first_of_row_[first];
    Question* end = questions_.data() + first_of_row_[first + count];
    for (Question* question = begin; question != end; ++question)
        question->row -= static_cast<std::int32_t>(first);
    std::sort(begin, end, [](const Question& a, const Question& b) { return a.token < b.token; });
    kernels.output({weight, rows, count, begin, static_cast<std::size_t>(end - begin),
                    scratch.tile, scratch.tables, log_prob, log_sum});
    for (const Question* question = begin; question != end; ++question)
        log_prob[question->answer] -= log_sum[question->row];
}

}  // namespace secondpass
