#include "evenkeel/kernels/reference.h"

#include <cmath>
#include <numbers>

namespace evenkeel::kernels::reference {

namespace {

// Calls f(offset) for every value of channel c.
template <class Function>
void for_channel(const NormShape& shape, int64_t c, const Function& f) {
  for (int64_t n = 0; n < shape.n; ++n) {
    for (int64_t s = 0; s < shape.s; ++s) f(static_cast<size_t>(offset(shape, n, c, s)));
  }
}

// Channels per block; 0 where the layout has none.
int64_t block_of(NormLayout layout) {
  return layout == NormLayout::kBlocked8 ? 8 : layout == NormLayout::kBlocked16 ? 16 : 0;
}

// Calls f(offset, weight) for every value of channel c whose weight is above 0.
template <class Function>
void for_weighted(const NormShape& shape, int64_t c, const Values& weights, const Function& f) {
  for (int64_t n = 0; n < shape.n; ++n) {
    for (int64_t s = 0; s < shape.s; ++s) {
      const double w = weights[static_cast<size_t>(n * shape.s + s)];
      if (w > 0) f(static_cast<size_t>(offset(shape, n, c, s)), static_cast<long double>(w));
    }
  }
}

double at(const Values& values, size_t i, double absent) { return values.empty() ? absent : values[i]; }

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
double normal_distribution(double z) { return std::erfc(-z / std::numbers::sqrt2) / 2; }
double normal_density(double z) { return std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi); }
double gelu_inner(double z) { return std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z); }

}  // namespace

int64_t example_size(const NormShape& shape) {
  const int64_t block = block_of(shape.layout);
  return block == 0 ? shape.c * shape.s : (shape.c + block - 1) / block * block * shape.s;
}

int64_t offset(const NormShape& shape, int64_t n, int64_t c, int64_t s) {
  const int64_t block = block_of(shape.layout);
  if (block > 0) return n * example_size(shape) + (c / block * shape.s + s) * block + c % block;
  if (shape.layout == NormLayout::kChannelsFirst) return (n * shape.c + c) * shape.s + s;
  return (n * shape.s + s) * shape.c + c;
}

double activate(double z, const Activation& activation) {
  switch (activation.kind) {
    case ActivationKind::kIdentity:
      return z;
    case ActivationKind::kRelu:
      return z <= 0 ? 0 : z;
    case ActivationKind::kLeakyRelu:
      return z > 0 ? z : static_cast<double>(activation.slope) * z;
    case ActivationKind::kSigmoid:
      return sigmoid(z);
    case ActivationKind::kTanh:
      return std::tanh(z);
    case ActivationKind::kGelu:
      return z * normal_distribution(z);
    case ActivationKind::kGeluTanh:
      return z / 2 * (1 + std::tanh(gelu_inner(z)));
    case ActivationKind::kSilu:
      return z * sigmoid(z);
  }
  return z;
}

double activation_derivative(double z, const Activation& activation) {
  if (std::isnan(z)) return z;
  switch (activation.kind) {
    case ActivationKind::kIdentity:
      return 1;
    case ActivationKind::kRelu:
      return z > 0 ? 1 : 0;
    case ActivationKind::kLeakyRelu:
      return z > 0 ? 1 : static_cast<double>(activation.slope);
    case ActivationKind::kSigmoid:
      return sigmoid(z) * sigmoid(-z);
    case ActivationKind::kTanh:
      return 4 * sigmoid(2 * z) * sigmoid(-2 * z);
    case ActivationKind::kGelu:
      return normal_distribution(z) + z * normal_density(z);
    case ActivationKind::kGeluTanh: {
      const double t = std::tanh(gelu_inner(z));
      const double inner_slope = std::sqrt(2 / std::numbers::pi) * (1 + 3 * 0.044715 * z * z);
      return (1 + t) / 2 + z / 2 * (1 - t * t) * inner_slope;
    }
    case ActivationKind::kSilu:
      return sigmoid(z) * (1 + z * sigmoid(-z));
  }
  return 1;
}

std::vector<Moments> moments(const Values& x, const NormShape& shape) {
  std::vector<Moments> result(static_cast<size_t>(shape.c));
  const long double m = static_cast<long double>(shape.n * shape.s);
  for (int64_t c = 0; c < shape.c; ++c) {
    long double sum = 0;
    for_channel(shape, c, [&](size_t i) { sum += x[i]; });
    const long double mean = sum / m;
    long double m2 = 0;
    for_channel(shape, c, [&](size_t i) { m2 += (x[i] - mean) * (x[i] - mean); });
    result[static_cast<size_t>(c)] = {static_cast<double>(m), static_cast<double>(mean), static_cast<double>(m2)};
  }
  return result;
}

std::vector<NormScale> scale_of(const std::vector<Moments>& moments, double eps) {
  std::vector<NormScale> result;
  for (const Moments& m : moments) result.push_back({m.mean, 1 / std::sqrt(m.m2 / m.count + eps)});
  return result;
}

Values affine(const Values& x, const NormShape& shape, const std::vector<NormScale>& scale, const Values& gamma,
              const Values& beta, const Values& residual) {
  Values z(x.size());
  for (int64_t c = 0; c < shape.c; ++c) {
    const size_t k = static_cast<size_t>(c);
    for_channel(shape, c, [&](size_t i) {
      const double xhat = (x[i] - scale[k].mean) * scale[k].rstd;
      z[i] = at(gamma, k, 1) * xhat + at(beta, k, 0) + at(residual, i, 0);
    });
  }
  return z;
}

Values normalize(const Values& x, const NormShape& shape, const std::vector<NormScale>& scale, const Values& gamma,
                 const Values& beta, const Activation& activation, const Values& residual) {
  Values y = affine(x, shape, scale, gamma, beta, residual);
  for (int64_t c = 0; c < shape.c; ++c) for_channel(shape, c, [&](size_t i) { y[i] = activate(y[i], activation); });
  return y;
}

Gradient gradient(const Values& x, const Values& dy, const NormShape& shape, const std::vector<NormScale>& scale,
                  const Values& gamma, const Values& beta, const Activation& activation, const Values& residual,
                  bool batch_statistics) {
  const Values z = affine(x, shape, scale, gamma, beta, residual);
  Gradient result;
  Values& g = result.dresidual;
  g.resize(x.size());
  result.dx.resize(x.size());
  const long double m = static_cast<long double>(shape.n * shape.s);
  for (int64_t c = 0; c < shape.c; ++c) {
    const size_t k = static_cast<size_t>(c);
    const long double mean = scale[k].mean;
    const long double rstd = scale[k].rstd;
    const long double gamma_c = at(gamma, k, 1);
    long double dbeta = 0, dgamma = 0, dvar = 0, dmean = 0, deviation = 0;
    for_channel(shape, c, [&](size_t i) {
      g[i] = dy[i] * activation_derivative(z[i], activation);
      const long double dxhat = g[i] * gamma_c;
      dbeta += g[i];
      dgamma += g[i] * (x[i] - mean) * rstd;
      dvar += dxhat * (x[i] - mean) * (-rstd * rstd * rstd / 2);
      dmean += dxhat * -rstd;
      deviation += x[i] - mean;
    });
    dmean += dvar * -2 * deviation / m;
    for_channel(shape, c, [&](size_t i) {
      long double dx = g[i] * gamma_c * rstd;
      if (batch_statistics) dx += dvar * 2 * (x[i] - mean) / m + dmean / m;
      result.dx[i] = static_cast<double>(dx);
    });
    result.dgamma.push_back(static_cast<double>(dgamma));
    result.dbeta.push_back(static_cast<double>(dbeta));
    result.sums.push_back({static_cast<double>(dbeta), static_cast<double>(dgamma / rstd)});
  }
  return result;
}

std::vector<Moments> weighted_moments(const Values& x, const NormShape& shape, const Values& weights) {
  std::vector<Moments> result;
  for (int64_t c = 0; c < shape.c; ++c) {
    long double total = 0, sum = 0, m2 = 0;
    for_weighted(shape, c, weights, [&](size_t i, long double w) {
      total += w;
      sum += w * x[i];
    });
    const long double mean = sum / total;
    for_weighted(shape, c, weights, [&](size_t i, long double w) { m2 += w * (x[i] - mean) * (x[i] - mean); });
    result.push_back({static_cast<double>(total), static_cast<double>(mean), static_cast<double>(m2)});
  }
  return result;
}

Gradient weighted_gradient(const Values& x, const Values& dy, const NormShape& shape,
                           const std::vector<NormScale>& scale, const Values& gamma, const Values& beta,
                           const Activation& activation, const Values& residual, const Values& weights) {
  const Values z = affine(x, shape, scale, gamma, beta, residual);
  Gradient result;
  Values& g = result.dresidual;
  g.assign(x.size(), 0);
  result.dx.assign(x.size(), 0);
  for (int64_t c = 0; c < shape.c; ++c) {
    const size_t k = static_cast<size_t>(c);
    const long double mean = scale[k].mean, rstd = scale[k].rstd, gamma_c = at(gamma, k, 1);
    long double total = 0, dbeta = 0, dgamma = 0, dvar = 0, dmean = 0, deviation = 0;
    for_weighted(shape, c, weights, [&](size_t i, long double w) {
      g[i] = dy[i] * activation_derivative(z[i], activation);
      const long double dxhat = g[i] * gamma_c;
      total += w;
      dbeta += g[i];
      dgamma += g[i] * (x[i] - mean) * rstd;
      dvar += dxhat * (x[i] - mean) * (-rstd * rstd * rstd / 2);
      dmean += dxhat * -rstd;
      deviation += w * (x[i] - mean);
    });
    dmean += dvar * -2 * deviation / total;
    for_weighted(shape, c, weights, [&](size_t i, long double w) {
      const long double dx = g[i] * gamma_c * rstd + dvar * 2 * w * (x[i] - mean) / total + dmean * w / total;
      result.dx[i] = static_cast<double>(dx);
    });
    result.dgamma.push_back(static_cast<double>(dgamma));
    result.dbeta.push_back(static_cast<double>(dbeta));
    result.sums.push_back({static_cast<double>(dbeta), static_cast<double>(dgamma / rstd)});
  }
  return result;
}

}  // namespace evenkeel::kernels::reference
