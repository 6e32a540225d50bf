// How the stored statistics of a norm are read (docs/math.md, (27)).
#pragma once

#include <cmath>
#include <cstdint>

#include "evenkeel/graph/graph.h"

namespace evenkeel {

// After `batches`. The weights of all batches seen add up to 1 - (1 - w)^t: what is missing to 1 belongs to the initial zeros.
class RunningReading {
 public:
  RunningReading(const ScaleOfRunning& op, int64_t batches)
      : weight_(!op.bias_corrected ? 1
                : batches > 0      ? 1 - std::pow(1 - op.new_batch_weight, static_cast<double>(batches))
                                   : 0) {}

  // Where no batch has a weight yet the start values stand for what is stored.
  double mean(double stored) const { return weight_ > 0 ? stored / weight_ : 0; }
  double var(double stored) const { return weight_ > 0 ? stored / weight_ : 1; }

 private:
  double weight_;  // of all batches together
};

}  // namespace evenkeel
