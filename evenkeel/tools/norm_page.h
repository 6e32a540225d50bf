// The norms of a model as one HTML page: totals, findings, and the ranges of gamma, beta, mean, variance and folded scale drawn norm by norm.
// Self-contained, without a script, light and dark, printable.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/tools/lint.h"
#include "evenkeel/tools/norm_table.h"

namespace evenkeel::tools {

std::string norm_page(const NormTable& table, const std::vector<Finding>& findings, const std::string& title);

// Least, quarters and greatest of the finite values; all NaN where there are none.
struct Range {
  double low, first_quarter, median, third_quarter, high;
};
Range range_of(std::vector<double> values);

}  // namespace evenkeel::tools
