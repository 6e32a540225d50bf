#include "evenkeel/train/estimate.h"

#include <fmt/format.h>

#include <cmath>

#include "evenkeel/kernels/weighted.h"

namespace evenkeel {

StatisticsEstimate::StatisticsEstimate(RunningStatistics kind, bool biased, double new_batch_weight,
                                       ChannelStatistics start, bool from_start)
    : kind_(kind), biased_(biased), new_batch_weight_(new_batch_weight), result_(std::move(start)) {
  if (merges()) {
    merged_.resize(result_.mean.size());
    result_.mean.clear();
    result_.var.clear();
  } else if (from_start) {
    weight_ = 1;
  } else {
    result_.mean.assign(result_.mean.size(), 0);
    result_.var.assign(result_.var.size(), 0);
  }
  before_ = result_.batches;
}

void StatisticsEstimate::add(const std::vector<Moments>& batch) {
  ++result_.batches;
  const double w =
      kind_ == RunningStatistics::kEma ? new_batch_weight_ : 1 / static_cast<double>(result_.batches - before_);
  weight_ += w * (1 - weight_);
  for (size_t c = 0; c < batch.size(); ++c) {
    if (merges()) {
      merged_[c].push(batch[c]);
    } else {
      result_.mean[c] += w * (batch[c].mean - result_.mean[c]);
      result_.var[c] += w * (variance(batch[c]) - result_.var[c]);
    }
  }
}

double StatisticsEstimate::variance(const Moments& moments) const {
  if (biased_) return moments.var_population();
  if (moments.count > kernels::kLightestUnbiased) return moments.var_sample();
  throw UsageError(fmt::format(
      "the statistics of norm '{}': the values of a batch count as {:.6g} by their weights, and the unbiased "
      "variance divides by that less 1; expected more than {}: take larger batches, multiply weights by a "
      "number that makes them about 1, or give --running-variance biased; nothing was changed",
      result_.name, moments.count, kernels::kLightestUnbiased));
}

ChannelStatistics StatisticsEstimate::result() const {
  ChannelStatistics result = result_;
  for (const TreeFold<Moments>& channel : merged_) {
    const Moments all = channel.fold();
    result.mean.push_back(all.mean);
    result.var.push_back(variance(all));
  }
  if (merges()) return result;
  for (double& mean : result.mean) mean /= weight_;
  for (double& var : result.var) var /= weight_;
  return result;
}

void require_finite(const ChannelStatistics& s) {
  for (size_t c = 0; c < s.mean.size(); ++c) {
    const auto mean = static_cast<float>(s.mean[c]), var = static_cast<float>(s.var[c]);
    if (std::isfinite(mean) && std::isfinite(var) && var >= 0) continue;
    throw Error(fmt::format("the statistics of norm '{}' are not finite (channel {}: mean {}, variance {}): weights or "
                            "examples overflow below it; nothing was changed",
                            s.name, c, s.mean[c], s.var[c]),
                kExitNotFinite);
  }
}

}  // namespace evenkeel
