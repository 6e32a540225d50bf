#include "evenkeel/lab/experiment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "evenkeel/core/error.h"
#include "evenkeel/train/words.h"

namespace evenkeel::lab {

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kHolds:
      return "holds";
    case Verdict::kHoldsInPart:
      return "holds in part";
    case Verdict::kDoesNotHold:
      return "does not hold here";
  }
  return "";
}

double number_of(const Json& json) {
  return json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
}

namespace {
// Not a number stands behind all numbers.
bool is_less(double a, double b) { return std::isnan(b) ? !std::isnan(a) : a < b; }
}  // namespace

double Figure::median() const {
  EK_ASSERT(!values.empty());
  std::vector<double> sorted = values;
  std::sort(sorted.begin(), sorted.end(), is_less);
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
double Figure::least() const { return *std::min_element(values.begin(), values.end(), is_less); }
double Figure::greatest() const { return *std::max_element(values.begin(), values.end(), is_less); }

const std::vector<Experiment>& experiments() {
  static const std::vector<Experiment> kAll = {
      speed_experiment(),           learning_rate_experiment(),  depth_experiment(),     landscape_experiment(),
      covariate_shift_experiment(), regularization_experiment(), test_time_experiment(), placement_experiment(),
      small_batch_experiment(),     identity_experiment(),
  };
  return kAll;
}

const Experiment& find_experiment(const std::string& name) {
  std::vector<std::string> names;
  for (const Experiment& experiment : experiments()) {
    if (name == experiment.name) return experiment;
    names.emplace_back(experiment.name);
  }
  throw UsageError(fmt::format("there is no experiment '{}'{}", name, did_you_mean(name, names)));
}

}  // namespace evenkeel::lab
