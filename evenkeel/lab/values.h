// Values that trials leave: JSON has no NaN, so what is not finite is null, and whoever reads it must say what that means.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evenkeel/lab/experiment.h"

namespace evenkeel::lab {

// The value, or null where it is not finite.
Json number(double value);
// Of a trial's result; nothing where it is null or missing.
std::optional<double> number_in(const Json& result, const std::string& name);

// The rate with the greatest "score" among the trials PREFIX + rate; the least rate where all of them diverged.
std::string rate_key(const std::string& prefix, double rate);
double best_rate(const Results& earlier, const std::string& prefix, const std::vector<double>& rates);

// Whether a figure reaches the limit of a rule. Limits are decimal numbers and figures are made of decimal numbers: a hit must not be lost to the
// binary rounding of either (0.3 / 0.1 is below 3). Not a number reaches nothing.
bool at_least(double value, double limit);
bool at_most(double value, double limit);

// The median of values, of which there is at least one.
double median_of(std::vector<double> values);

// A point of a series: the median of its values with the least and the greatest as a band. Nothing where there are no values.
void add_point(report::Series& series, double x, const std::vector<double>& values);

}  // namespace evenkeel::lab
