// A packed Transformer over trees of tokens.
#pragma once

#include <memory>
#include <vector>

#include "engine.h"
#include "kernels.h"
#include "paths.h"
#include "plan.h"
#include "transformer_worker.h"

namespace secondpass {

class Transformer final : public Engine {
public:
    Transformer(const Kernels& kernels, std::shared_ptr<Pool> pool, TransformerPlan plan);

private:
    void forward(Batch& batch, float* log_prob) override;
    void require_scratch(const Batch& batch, const Paths& paths);

    const TransformerPlan plan_;
    const Heads heads_;
    std::vector<TransformerScratch> scratch_;  // one per thread
};

}  // namespace secondpass
