// The oracle of the norm and the activations: slow, in double with sums in long double, two passes, no SIMD, no
// threads, and another algorithm than the kernels (docs/math.md derives one from the other). It reads like Ioffe and
// Szegedy 2015.
//
//   const auto m = reference::moments(x, shape);
//   const auto y = reference::normalize(x, shape, reference::scale_of(m, eps), gamma, beta, activation, {});
//
// Data are doubles in the layout of the shape, n * example_size() of them; a vector that does not apply is empty. Sizes
// must agree. The padding of a blocked layout is never read, and 0 in results. The shape's type is not looked at: data
// are what was stored, and nothing is rounded.
#pragma once

#include <cstdint>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/kernels/norm.h"

namespace evenkeel::kernels::reference {

using Values = std::vector<double>;

// Elements of one example, with the padding of a blocked layout.
int64_t example_size(const NormShape& shape);
// Offset of example n, channel c, position s. In a blocked layout c may lie in the padding.
int64_t offset(const NormShape& shape, int64_t n, int64_t c, int64_t s);

double activate(double z, const Activation& activation);
double activation_derivative(double z, const Activation& activation);

// Mean first, then the sum of squared deviations from it.
std::vector<Moments> moments(const Values& x, const NormShape& shape);
std::vector<NormScale> scale_of(const std::vector<Moments>& moments, double eps);

// z = gamma * (x - mean) * rstd + beta [+ residual]; y = act(z).
Values affine(const Values& x, const NormShape& shape, const std::vector<NormScale>& scale, const Values& gamma,
              const Values& beta, const Values& residual);
Values normalize(const Values& x, const NormShape& shape, const std::vector<NormScale>& scale, const Values& gamma,
                 const Values& beta, const Activation& activation, const Values& residual);

struct Gradient {
  Values dx, dresidual, dgamma, dbeta;
  std::vector<GradientSums> sums;
};
// The gradient of sum(dy * y) by the chain of the paper: through xhat, then the variance, then the mean.
// batch_statistics = false: mean and rstd are constants.
Gradient gradient(const Values& x, const Values& dy, const NormShape& shape, const std::vector<NormScale>& scale,
                  const Values& gamma, const Values& beta, const Activation& activation, const Values& residual,
                  bool batch_statistics);

// The same with weights, n * s of them: a value of weight 0 is not looked at, and its gradient is 0. By the chain of the paper again,
// where mean and variance are weighted means.
std::vector<Moments> weighted_moments(const Values& x, const NormShape& shape, const Values& weights);
Gradient weighted_gradient(const Values& x, const Values& dy, const NormShape& shape,
                           const std::vector<NormScale>& scale, const Values& gamma, const Values& beta,
                           const Activation& activation, const Values& residual, const Values& weights);

}  // namespace evenkeel::kernels::reference
