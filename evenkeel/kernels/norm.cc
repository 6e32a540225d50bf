#include "evenkeel/kernels/norm.h"

#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/kernels/norm_plan.h"

namespace evenkeel::kernels {

void scale_of(std::span<const Moments> moments, double eps, std::span<NormScale> out) {
  EK_ASSERT(moments.size() == out.size());
  for (size_t c = 0; c < out.size(); ++c) {
    out[c] = {moments[c].mean, 1 / std::sqrt(moments[c].var_population() + eps)};
  }
}

size_t norm_workspace_bytes(const NormShape& shape) {
  const ReductionPlan plan(canonical(shape));
  return static_cast<size_t>(plan.entries * shape.c) * 2 * sizeof(double);
}

void affine_gradient(std::span<const GradientSums> sums, const NormScale* scale, float* dgamma, float* dbeta) {
  for (size_t c = 0; c < sums.size(); ++c) {
    if (dgamma) dgamma[c] = static_cast<float>(scale[c].rstd * sums[c].dy_xmu);
    if (dbeta) dbeta[c] = static_cast<float>(sums[c].dy);
  }
}

}  // namespace evenkeel::kernels
