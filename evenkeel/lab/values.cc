#include "evenkeel/lab/values.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace evenkeel::lab {

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

std::optional<double> number_in(const Json& result, const std::string& name) {
  const auto found = result.find(name);
  if (found == result.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

std::string rate_key(const std::string& prefix, double rate) { return fmt::format("{}{:g}", prefix, rate); }

double best_rate(const Results& earlier, const std::string& prefix, const std::vector<double>& rates) {
  double best = *std::min_element(rates.begin(), rates.end());
  std::optional<double> greatest;
  for (const double rate : rates) {
    const std::optional<double> score = number_in(earlier.at(rate_key(prefix, rate)), "score");
    if (!score || (greatest && *score <= *greatest)) continue;
    greatest = score;
    best = rate;
  }
  return best;
}

namespace {
constexpr double kRounding = 1e-9;  // far below what any figure is measured to
double slack(double limit) { return kRounding * std::abs(limit); }
}  // namespace

bool at_least(double value, double limit) { return value >= limit - slack(limit); }
bool at_most(double value, double limit) { return value <= limit + slack(limit); }

double median_of(std::vector<double> values) { return Figure{.name = "", .values = std::move(values)}.median(); }

void add_point(report::Series& series, double x, const std::vector<double>& values) {
  if (values.empty()) return;
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  series.x.push_back(x);
  series.y.push_back(median_of(values));
  series.low.push_back(*least);
  series.high.push_back(*greatest);
}

}  // namespace evenkeel::lab
