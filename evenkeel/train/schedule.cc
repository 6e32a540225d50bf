#include "evenkeel/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "evenkeel/core/error.h"

namespace evenkeel {
namespace {

// PyTorch's defaults of OneCycleLR.
constexpr double kRise = 0.3;          // pct_start
constexpr double kStartDivisor = 25;   // div_factor
constexpr double kFinalDivisor = 1e4;  // final_div_factor

// From `start` at 0 to `end` at 1 along half a cosine.
double cosine_between(double start, double end, double fraction) {
  return end + (start - end) / 2 * (1 + std::cos(std::numbers::pi * fraction));
}

double one_cycle(double largest, int64_t total, int64_t step) {
  const double first = largest / kStartDivisor;
  const double last = first / kFinalDivisor;
  const double peak = kRise * static_cast<double>(total) - 1;  // a step, not always a whole one
  const double end = static_cast<double>(total) - 1;
  const double at = std::min(static_cast<double>(step), end);
  if (at <= peak) return cosine_between(first, largest, at / peak);
  return cosine_between(largest, last, (at - peak) / (end - peak));
}

}  // namespace

const std::vector<std::string>& schedule_names() {
  static const std::vector<std::string> names = {"constant", "step", "cosine", "one-cycle", "plateau"};
  return names;
}

ScheduleKind schedule_from_name(const std::string& name) {
  const auto& names = schedule_names();
  const auto it = std::find(names.begin(), names.end(), name);
  if (it != names.end()) return static_cast<ScheduleKind>(it - names.begin());
  const std::string likely = closest_match(name, names);
  throw UsageError("unknown schedule '" + name + "'" + (likely.empty() ? ";" : "; did you mean '" + likely + "'?") +
                   " The schedules are constant, step, cosine, one-cycle and plateau");
}

const char* name_of(ScheduleKind kind) { return schedule_names()[static_cast<size_t>(kind)].c_str(); }

double learning_rate_at(const Schedule& s, int64_t step) {
  EK_ASSERT(step >= 0 && s.total_steps >= 1 && s.warmup_steps >= 0 && s.step_every >= 1);
  if (s.kind == ScheduleKind::kOneCycle) return one_cycle(s.learning_rate, s.total_steps, step);
  if (step < s.warmup_steps) {
    return s.learning_rate * static_cast<double>(step + 1) / static_cast<double>(s.warmup_steps + 1);
  }
  const int64_t t = step - s.warmup_steps;
  if (s.kind == ScheduleKind::kStep) {
    const int64_t drops = t / s.step_every;
    return s.learning_rate * std::pow(s.factor, static_cast<double>(drops));
  }
  if (s.kind == ScheduleKind::kPlateau) return s.learning_rate * std::pow(s.factor, static_cast<double>(s.reductions));
  if (s.kind == ScheduleKind::kCosine) {
    const int64_t total = std::max<int64_t>(1, s.total_steps - s.warmup_steps);
    const double fraction = static_cast<double>(std::min(t, total)) / static_cast<double>(total);
    return cosine_between(s.learning_rate, s.learning_rate * s.final_fraction, fraction);
  }
  return s.learning_rate;
}

}  // namespace evenkeel
