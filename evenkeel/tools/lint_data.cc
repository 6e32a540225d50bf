#include "evenkeel/tools/lint_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace evenkeel::tools {
namespace {

// Half a deviation, or a factor of 2 in the variance (ln 2 = 0.69): several times what sampling does to statistics of a few thousand values.
constexpr double kShiftApart = 0.5, kLogRatioApart = 0.69;
// Below this share of the stored variance a channel stands still: its deviation is a thousandth of what it was.
constexpr double kConstant = 1e-6;
// The first fifth of the norms, at least one, must be so many times further off than the rest.
constexpr double kFirstShare = 0.2, kFurther = 1.5;
// Accuracies of a few hundred examples differ by less by chance.
constexpr double kMoreAccurate = 0.02;

const NormRecord* find(const NormTable& table, const std::string& name) {
  const auto found =
      std::find_if(table.norms.begin(), table.norms.end(), [&](const NormRecord& norm) { return norm.name == name; });
  return found == table.norms.end() ? nullptr : &*found;
}

NormObservation observation_of(const NormRecord& norm, const std::vector<Moments>& moments) {
  const ChannelStatistics stored{.name = norm.name, .batches = 0, .mean = norm.mean, .var = norm.var};
  const ChannelStatistics actual = statistics_of(InputMoments{norm.name, moments});
  NormObservation observation{.distance = distance(stored, actual, norm.eps)};
  for (size_t c = 0; c < moments.size(); ++c)
    observation.constant_channels += actual.var[c] <= kConstant * (std::abs(norm.var[c]) + norm.eps) ? 1 : 0;
  return observation;
}

double mean_apart(std::span<const NormObservation> observations) {
  double sum = 0;
  for (const NormObservation& observation : observations) sum += observation.apart();
  return sum / static_cast<double>(observations.size());
}

bool is_apart(const NormObservation& observation) {
  return observation.distance.mean_shift > kShiftApart || observation.distance.log_var_ratio > kLogRatioApart;
}

// The first norms see the inputs through little else: when they are the furthest off, the inputs are other ones.
std::optional<Finding> preprocessing(const std::vector<NormObservation>& observations) {
  if (observations.empty() || !is_apart(observations[0])) return std::nullopt;
  const std::span<const NormObservation> all(observations);
  const size_t n = std::max<size_t>(1, static_cast<size_t>(kFirstShare * static_cast<double>(all.size())));
  const double first = mean_apart(all.first(n));
  if (n < all.size() && first < kFurther * mean_apart(all.subspan(n))) return std::nullopt;
  const NormDistance& d = observations[0].distance;
  return finding(
      "EK119", d.name,
      fmt::format("the first norm is {:.2g} deviations and a factor of {:.3g} in the variance from what is stored{}",
                  d.mean_shift, std::exp(d.log_var_ratio),
                  n < all.size() ? fmt::format(", {:.2g} times as far as those behind it",
                                               first / std::max(mean_apart(all.subspan(n)), 1e-9))
                                 : ""));
}

}  // namespace

double NormObservation::apart() const { return std::max(distance.mean_shift, distance.log_var_ratio); }

std::vector<NormObservation> observe(const NormTable& table,
                                     const std::map<std::string, std::vector<Moments>>& moments) {
  std::vector<NormObservation> observations;
  for (const NormRecord& norm : table.norms) {
    auto found = moments.find(norm.output);
    if (norm.output.empty() || found == moments.end()) found = moments.find(norm.name);
    if (found == moments.end() || found->second.size() != norm.mean.size() || norm.mean.empty()) continue;
    observations.push_back(observation_of(norm, found->second));
  }
  return observations;
}

std::optional<Finding> preprocessing_suspicion(const std::vector<NormDistance>& distances) {
  std::vector<NormObservation> observations;
  for (const NormDistance& d : distances) observations.push_back({.distance = d, .constant_channels = 0});
  return preprocessing(observations);
}

std::vector<Finding> lint_observations(const NormTable& table, const std::vector<NormObservation>& observations,
                                       const std::optional<Accuracies>& accuracies) {
  std::vector<Finding> findings;
  if (std::optional<Finding> first = preprocessing(observations)) findings.push_back(std::move(*first));
  for (const NormObservation& observation : observations) {
    const NormDistance& d = observation.distance;
    if (is_apart(observation)) {
      findings.push_back(finding(
          "EK118", d.name,
          fmt::format("mean off by {:.2g} stored deviations, variance by a factor of {:.3g} (rms over the channels)",
                      d.mean_shift, std::exp(d.log_var_ratio))));
    }
    const NormRecord* norm = find(table, d.name);
    if (observation.constant_channels > 0 && norm != nullptr) {
      findings.push_back(finding("EK120", d.name,
                                 fmt::format("{} of {} channels", observation.constant_channels, norm->channels),
                                 observation.constant_channels));
    }
  }
  if (accuracies && accuracies->batch > accuracies->stored + kMoreAccurate) {
    findings.push_back(
        finding("EK121", "",
                fmt::format("accuracy {:.4f} with the stored statistics, {:.4f} with those of the batches",
                            accuracies->stored, accuracies->batch)));
  }
  return findings;
}

}  // namespace evenkeel::tools
