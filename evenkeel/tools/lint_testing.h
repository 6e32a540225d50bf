// What the tests of lint and of the tables that it judges share.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/tools/lint.h"

namespace evenkeel::tools {

inline std::vector<std::string> codes_of(const std::vector<Finding>& findings) {
  std::vector<std::string> codes;
  for (const Finding& f : findings) codes.push_back(f.code);
  return codes;
}

}  // namespace evenkeel::tools
