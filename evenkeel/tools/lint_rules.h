// The rules of lint: one table, from which findings take their severity and remedy, and `evenkeel explain` its text.
#pragma once

#include <string>
#include <vector>

namespace evenkeel::tools {

enum class Severity { kInfo, kWarning, kError };
const char* name_of(Severity severity);  // "info", "warning", "error"

struct LintRule {
  std::string code = {};  // never given to another rule
  Severity severity = Severity::kInfo;
  std::string title = {}, explanation = {}, remedy = {};
};

// In the order of their codes.
const std::vector<LintRule>& lint_rules();
// Throws UsageError, naming the closest code, where there is none.
const LintRule& lint_rule(const std::string& code);

}  // namespace evenkeel::tools
