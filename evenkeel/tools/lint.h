// Judges the norms of a model: one finding per norm and rule.
//
//   for (const tools::Finding& finding : tools::lint(table)) fmt::print("{} {}: {}\n", finding.code, finding.norm, finding.reason);
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/tools/lint_rules.h"
#include "evenkeel/tools/norm_table.h"

namespace evenkeel::tools {

struct Finding {
  std::string code = {};
  Severity severity = Severity::kInfo;
  std::string norm = {};    // "" = the model as a whole
  std::string reason = {};  // with the numbers; a clause without a point
  int64_t channels = 0;     // how many are concerned; 0: the norm as such
};

// The rule's severity, unless another is given.
Finding finding(const std::string& code, const std::string& norm, const std::string& reason, int64_t channels = 0);

// By the file alone, in the order of the norms and, within one, of the codes.
std::vector<Finding> lint(const NormTable& table);

// Channels of all norms, counted.
struct ChannelTotals {
  int64_t norms = 0, channels = 0;
  int64_t variance_below_eps = 0;   // at or below; also those of the next three
  int64_t variance_below_1e10 = 0;  // below 1e-10
  int64_t variance_denormal = 0;
  int64_t variance_zero = 0;
  int64_t variance_negative = 0;
  int64_t not_finite = 0;    // in gamma, beta, mean or variance
  int64_t gamma_near_0 = 0;  // |gamma| < kGammaNearZero
};
ChannelTotals totals_of(const NormTable& table);

inline constexpr double kGammaNearZero = 1e-3;

}  // namespace evenkeel::tools
