// Averages of the batch statistics over the steps of a training run, beside the one that the model keeps. Several of them can be taken in
// one run where the model's own statistics are those of the last batch alone (NormSettings::new_batch_weight = 1).
#pragma once

#include <vector>

#include "evenkeel/train/estimate.h"

namespace evenkeel::lab {

class StepAverage {
 public:
  // kEma with that weight, from mean 0 and variance 1 as a model begins, or kCumulative. `norms`: their names and channels count.
  StepAverage(RunningStatistics kind, double new_batch_weight, const std::vector<ChannelStatistics>& norms);
  void add(const std::vector<ChannelStatistics>& batch);  // of the same norms in the same order
  std::vector<ChannelStatistics> result() const;

 private:
  std::vector<StatisticsEstimate> norms_;
};

}  // namespace evenkeel::lab
