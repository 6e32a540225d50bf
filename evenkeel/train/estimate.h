// The statistics of one norm, folded batch by batch: every kind of running statistics is another fold over the same moments.
#pragma once

#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel {

class StatisticsEstimate {
 public:
  // start: its name and number of channels count, and with from_start (an average that goes on) its values, too.
  StatisticsEstimate(RunningStatistics kind, bool biased, double new_batch_weight, ChannelStatistics start,
                     bool from_start);
  // Both throw UsageError where an unbiased variance is wanted of values that count as about one.
  void add(const std::vector<Moments>& batch);
  ChannelStatistics result() const;

 private:
  bool merges() const {
    return kind_ == RunningStatistics::kPopulation || kind_ == RunningStatistics::kPopulationOnePass;
  }
  double variance(const Moments& moments) const;  // throws UsageError where the unbiased one has too small a count

  RunningStatistics kind_;
  bool biased_;
  double new_batch_weight_;
  ChannelStatistics result_;
  int64_t before_ = 0;
  double weight_ = 0;  // of all batches and what was there before, together
  std::vector<TreeFold<Moments>> merged_;
};

// Throws Error with the exit code of "not finite" naming norm and channel.
void require_finite(const ChannelStatistics& statistics);

}  // namespace evenkeel
