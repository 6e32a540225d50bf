// Networks compared at their own best learning rates: the runs of a sweep, and which of them is the best.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/lab/experiment.h"
#include "evenkeel/lab/training.h"
#include "evenkeel/lab/values.h"

namespace evenkeel::lab {

// How a run ended: means over its last steps. Diverged: no loss, accuracy 0.
struct RunEnd {
  bool diverged = false;
  std::optional<double> loss = std::nullopt;
  double accuracy = 0;
};
inline constexpr int64_t kLastSteps = 20;
// Takes all steps that are left, and calls after_step after each.
RunEnd finish(Training& run, const std::function<void()>& after_step = {});

// {"diverged", "loss" or null, "accuracy"}
Json json_of(const RunEnd& end);

// Of the rates, the one whose result (results[i], with an "accuracy" as json_of has it) is the most accurate; the first of equals.
double best_rate(const std::vector<double>& rates, const std::vector<Json>& results);

// Medians of nothing are nothing.
std::optional<double> median_if_any(std::vector<double> values);

}  // namespace evenkeel::lab
