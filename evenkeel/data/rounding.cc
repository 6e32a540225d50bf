#include "evenkeel/data/rounding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace evenkeel::data {
namespace {

constexpr double kBearable = 1e-3;

}  // namespace

double RoundingWatch::loss(const Column& column) {
  const double range = column.max - column.min;
  if (!(range > 0)) return 0;
  const double largest = std::max(std::abs(column.min), std::abs(column.max));
  // Training flushes what is smaller to 0.
  if (largest < static_cast<double>(std::numeric_limits<float>::min())) return std::numeric_limits<double>::infinity();
  return column.error / range;
}

std::string RoundingWatch::sentence(const std::string& data, const std::function<std::string(size_t)>& name_of) const {
  size_t worst = 0, count = 0;
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (!(loss(columns_[i]) > kBearable)) continue;
    if (count == 0 || loss(columns_[i]) > loss(columns_[worst])) worst = i;
    ++count;
  }
  if (count == 0) return "";
  const Column& c = columns_[worst];
  const std::string others = count == 1   ? ""
                             : count == 2 ? "; another column alike"
                                          : fmt::format("; {} other columns alike", count - 1);
  if (std::isinf(loss(c))) {
    return fmt::format(
        "{}: {} holds values from {} to {}, too small for 32-bit numbers, which take them for 0; multiply them by a "
        "constant before{}",
        data, name_of(worst), c.min, c.max, others);
  }
  return fmt::format(
      "{}: {} is rounded to 32-bit numbers with errors up to {:.3g}, more than a thousandth of its range, {} to {}; "
      "subtract a constant such as {} from it before{}",
      data, name_of(worst), c.error, c.min, c.max, c.min, others);
}

}  // namespace evenkeel::data
