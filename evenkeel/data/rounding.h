// Columns that lose what they hold when their numbers are rounded to 32 bits: an offset that is large beside the differences.
#pragma once

#include <cstddef>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace evenkeel::data {

// Sees the values of each column before they are rounded.
class RoundingWatch {
 public:
  explicit RoundingWatch(size_t columns) : columns_(columns) {}

  // Requires column < columns and a value that a float holds.
  void see(size_t column, double value) {
    Column& c = columns_[column];
    const double error = value - static_cast<double>(static_cast<float>(value));
    if (value < c.min) c.min = value;
    if (value > c.max) c.max = value;
    if (error > c.error) c.error = error;
    if (-error > c.error) c.error = -error;
  }

  // A sentence about the worst column, `name_of` it, whose largest rounding error is above a thousandth of its range, or whose values are all too
  // small for a float of full precision; "" where there is none.
  std::string sentence(const std::string& data, const std::function<std::string(size_t)>& name_of) const;

 private:
  struct Column {
    double min = std::numeric_limits<double>::infinity();
    double max = -std::numeric_limits<double>::infinity();
    double error = 0;
  };
  // The rounding error as a share of the range; infinity where all of it is lost.
  static double loss(const Column& column);

  std::vector<Column> columns_;
};

}  // namespace evenkeel::data
