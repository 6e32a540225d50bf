#include "bench/accuracy_reference.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "evenkeel/core/parallel.h"

namespace evenkeel::bench {
namespace {

using Exact = long double;

// The larger one, or NaN where either is: an error that is not a number is the worst of all.
double worse(double a, double b) { return a >= b || std::isnan(a) ? a : b; }

AccuracyErrors worse(const AccuracyErrors& a, const AccuracyErrors& b) {
  return {worse(a.mean, b.mean), worse(a.variance, b.variance), worse(a.y, b.y), worse(a.dx, b.dx)};
}

// Distance from one float to the next at the size of `value`, which is normal and positive. std::ilogb would take longer than all the rest.
double ulp_of(double value) {
  constexpr uint64_t kExponent = 0x7ff0000000000000;
  return std::bit_cast<double>(std::bit_cast<uint64_t>(value) & kExponent) * 0x1p-23;
}

double y_error(const float* y, const Dataset& data, AccuracyLayout layout, int64_t c, const ExactScale& exact) {
  const auto x = data.x_of(c);
  const Exact scale = static_cast<Exact>(data.gamma_of(c)) * exact.rstd, beta = static_cast<Exact>(data.beta_of(c));
  const double least = std::max(static_cast<double>(std::abs(beta)), 1.0);
  double worst = 0;
  for_channel(layout, data.size, c, [&](size_t i, size_t offset) {
    const Exact scaled = scale * (static_cast<Exact>(x[i]) - exact.mean);
    const auto error = static_cast<double>(std::abs(static_cast<Exact>(y[offset]) - (scaled + beta)));
    worst = worse(worst, error / ulp_of(std::max(static_cast<double>(std::abs(scaled)), least)));
  });
  return worst;
}

// dx_i = dxhat_i * rstd + dvar * 2 * (x_i - mean) / m + dmean / m, where dxhat_i = dy_i * gamma: through xhat, the variance and the mean.
double dx_error(const float* dx, const Dataset& data, AccuracyLayout layout, int64_t c, const ExactScale& exact) {
  const auto x = data.x_of(c), dy = data.dy_of(c);
  const Exact gamma = static_cast<Exact>(data.gamma_of(c)), m = static_cast<Exact>(data.size.values);
  Exact dvar = 0, dmean = 0, deviations = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const Exact dxhat = static_cast<Exact>(dy[i]) * gamma, deviation = static_cast<Exact>(x[i]) - exact.mean;
    dvar += dxhat * deviation;
    dmean += dxhat;
    deviations += deviation;
  }
  dvar *= -exact.rstd * exact.rstd * exact.rstd / 2;
  dmean = -dmean * exact.rstd - dvar * 2 * deviations / m;

  Exact errors = 0, sizes = 0;
  for_channel(layout, data.size, c, [&](size_t i, size_t offset) {
    const Exact dxhat = static_cast<Exact>(dy[i]) * gamma, deviation = static_cast<Exact>(x[i]) - exact.mean;
    const Exact expected = dxhat * exact.rstd + dvar * 2 * deviation / m + dmean / m;
    const Exact error = static_cast<Exact>(dx[offset]) - expected;
    errors += error * error;
    sizes += expected * expected;
  });
  return static_cast<double>(std::sqrt(errors / sizes));
}

}  // namespace

std::vector<ExactScale> exact_scales(const Dataset& data, float eps, int threads) {
  std::vector<ExactScale> result(static_cast<size_t>(data.size.channels));
  parallel_for(data.size.channels, threads, [&](int64_t c, int) {
    const auto m = static_cast<Exact>(data.size.values);
    Exact sum = 0;
    for (const float value : data.x_of(c)) sum += static_cast<Exact>(value);
    const Exact mean = sum / m;
    Exact squares = 0, rest = 0;
    for (const float value : data.x_of(c)) {
      const Exact deviation = static_cast<Exact>(value) - mean;
      squares += deviation * deviation;
      rest += deviation;  // 0 but for the rounding of the mean, which it takes out of the variance
    }
    const Exact variance = (squares - rest * rest / m) / m;
    result[static_cast<size_t>(c)] = {mean, variance, 1 / std::sqrt(variance + static_cast<Exact>(eps))};
  });
  return result;
}

AccuracyErrors errors_of(const AccuracyAnswer& answer, const Dataset& data, AccuracyLayout layout,
                         const std::vector<ExactScale>& exact, int threads) {
  std::vector<AccuracyErrors> errors(exact.size());
  parallel_for(data.size.channels, threads, [&](int64_t channel, int) {
    const auto c = static_cast<size_t>(channel);
    const bool constant = exact[c].variance == 0;
    const Exact mean_unit = constant ? std::abs(exact[c].mean) : std::sqrt(exact[c].variance);
    const Exact variance_unit = constant ? 1 : exact[c].variance;
    const Exact mean_error = static_cast<Exact>(answer.mean[c]) - exact[c].mean;
    const Exact variance_error = static_cast<Exact>(answer.variance[c]) - exact[c].variance;
    errors[c].mean = static_cast<double>(std::abs(mean_error) / mean_unit);
    errors[c].variance = static_cast<double>(std::abs(variance_error) / variance_unit);
    errors[c].y = y_error(answer.y, data, layout, channel, exact[c]);
    if (data.has_gradient()) errors[c].dx = dx_error(answer.dx, data, layout, channel, exact[c]);
  });
  AccuracyErrors worst;
  for (const AccuracyErrors& e : errors) worst = worse(worst, e);
  return worst;
}

}  // namespace evenkeel::bench
