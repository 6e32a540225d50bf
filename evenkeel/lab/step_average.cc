#include "evenkeel/lab/step_average.h"

#include "evenkeel/core/error.h"

namespace evenkeel::lab {

StepAverage::StepAverage(RunningStatistics kind, double new_batch_weight, const std::vector<ChannelStatistics>& norms) {
  for (const ChannelStatistics& norm : norms) {
    const size_t channels = norm.mean.size();
    norms_.emplace_back(
        kind, /*biased=*/true, new_batch_weight,
        ChannelStatistics{norm.name, 0, std::vector<double>(channels, 0), std::vector<double>(channels, 1)},
        kind == RunningStatistics::kEma);
  }
}

void StepAverage::add(const std::vector<ChannelStatistics>& batch) {
  EK_ASSERT(batch.size() == norms_.size());
  for (size_t i = 0; i < norms_.size(); ++i) {
    std::vector<Moments> moments;  // whose population variance is the variance that the model holds
    for (size_t c = 0; c < batch[i].mean.size(); ++c) moments.push_back({1, batch[i].mean[c], batch[i].var[c]});
    norms_[i].add(moments);
  }
}

std::vector<ChannelStatistics> StepAverage::result() const {
  std::vector<ChannelStatistics> all;
  for (const StatisticsEstimate& norm : norms_) all.push_back(norm.result());
  return all;
}

}  // namespace evenkeel::lab
