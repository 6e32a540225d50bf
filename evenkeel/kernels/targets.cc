#include "evenkeel/kernels/targets.h"

#include "evenkeel/kernels/simd.h"
#include "hwy/highway.h"

namespace evenkeel::kernels {

std::vector<std::string> compiled_targets() {
  std::vector<std::string> names;
  // A lower bit is a wider target.
  for (int64_t left = HWY_TARGETS; left != 0; left &= left - 1) names.emplace_back(hwy::TargetName(left & -left));
  return names;
}

std::string highway_version() {
  return std::to_string(HWY_MAJOR) + "." + std::to_string(HWY_MINOR) + "." + std::to_string(HWY_PATCH);
}

}  // namespace evenkeel::kernels
