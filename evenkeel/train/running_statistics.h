// How the running statistics of a norm are made: three ways while training goes on, two by passes over the data.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/train/words.h"

namespace evenkeel {

enum class RunningStatistics {
  kEma,               // exponential average of the batches: running + w * (batch - running)
  kCumulative,        // as kEma with w = 1/t in step t: all batches count alike
  kMeanOfBatches,     // plain average of the batches' means and variances
  kPopulation,        // all values of all examples, each norm above norms that have their final statistics already
  kPopulationOnePass  // all values of all examples in one pass, in which every norm normalizes by its batch
};

// By passes over the data when a run ends, not by its steps.
inline bool is_made_by_passes(RunningStatistics statistics) {
  return statistics == RunningStatistics::kPopulation || statistics == RunningStatistics::kPopulationOnePass;
}

// In the order of the enum.
inline const std::vector<std::string>& running_statistics_names() {
  static const std::vector<std::string> kNames = {"ema", "cumulative", "mean_of_batches", "population",
                                                  "population_one_pass"};
  return kNames;
}

inline const char* name_of(RunningStatistics statistics) {
  return running_statistics_names()[static_cast<size_t>(statistics)].c_str();
}

// Throws UsageError with a suggestion.
inline RunningStatistics running_statistics_from_name(const std::string& name) {
  const auto& names = running_statistics_names();
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<RunningStatistics>(i);
  }
  throw UsageError("unknown running statistics '" + name + "'" + did_you_mean(name, names));
}

}  // namespace evenkeel
