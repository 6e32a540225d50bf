#include "evenkeel/lab/sweep.h"

#include <algorithm>

#include "evenkeel/core/error.h"

namespace evenkeel::lab {

RunEnd finish(Training& run, const std::function<void()>& after_step) {
  std::vector<double> losses, accuracies;
  while (run.step()) {
    losses.push_back(run.loss());
    accuracies.push_back(run.accuracy());
    if (after_step) after_step();
  }
  RunEnd end{.diverged = run.diverged()};
  if (end.diverged || losses.empty()) return end;
  const auto mean_of_last = [](const std::vector<double>& values) {
    const size_t count = std::min(values.size(), static_cast<size_t>(kLastSteps));
    double sum = 0;
    for (size_t i = values.size() - count; i < values.size(); ++i) sum += values[i];
    return sum / static_cast<double>(count);
  };
  end.loss = mean_of_last(losses);
  end.accuracy = mean_of_last(accuracies);
  return end;
}

Json json_of(const RunEnd& end) {
  return {{"diverged", end.diverged}, {"loss", end.loss ? number(*end.loss) : Json()}, {"accuracy", end.accuracy}};
}

double best_rate(const std::vector<double>& rates, const std::vector<Json>& results) {
  EK_ASSERT(!rates.empty() && rates.size() == results.size());
  size_t best = 0;
  for (size_t i = 1; i < rates.size(); ++i) {
    if (number_in(results[i], "accuracy").value_or(0) > number_in(results[best], "accuracy").value_or(0)) best = i;
  }
  return rates[best];
}

std::optional<double> median_if_any(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  return median_of(std::move(values));
}

}  // namespace evenkeel::lab
