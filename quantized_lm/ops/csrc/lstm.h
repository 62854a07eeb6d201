// A packed LSTM over trees of tokens.
#pragma once

#include <memory>
#include <vector>

#include "engine.h"
#include "kernels.h"
#include "levels.h"
#include "lstm_worker.h"
#include "plan.h"

namespace secondpass {

class Lstm final : public Engine {
public:
    Lstm(const Kernels& kernels, std::shared_ptr<Pool> pool, LstmPlan plan);

private:
    void forward(Batch& batch, float* log_prob) override;
    void require_scratch(const Levels& levels);

    const LstmPlan plan_;
    const std::vector<LstmLayer> layers_;
    LstmShared shared_;
    std::vector<LstmScratch> scratch_;  // one per thread
};

}  // namespace secondpass
