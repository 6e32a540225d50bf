// The oracle itself: against central differences in double, and against numbers worked out by hand.
#include "evenkeel/kernels/reference.h"

#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/kernels/kernel_testing.h"

namespace evenkeel::kernels::reference {
namespace {

constexpr double kEps = 1e-5;

struct Problem {
  NormShape shape;
  Activation activation;
  bool batch_statistics;
  Values x, dy, gamma, beta, residual;
  std::vector<NormScale> frozen;

  // sum(dy * y): its gradient is what gradient() gives.
  double loss() const {
    const auto scale = batch_statistics ? scale_of(moments(x, shape), kEps) : frozen;
    const Values y = normalize(x, shape, scale, gamma, beta, activation, residual);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += dy[i] * y[i];
    return sum;
  }
};

Values random_doubles(size_t count, uint64_t seed, double mean = 0) {
  RandomStream random(seed, RandomUse::kInitialize);
  Values values(count);
  for (double& v : values) v = mean + random.next_normal();
  return values;
}

void expect_matches_differences(Problem& p, Values& parameter, const Values& gradient, const char* name) {
  ASSERT_EQ(parameter.size(), gradient.size());
  constexpr double kStep = 1e-5;  // error of the difference: step^2 = 1e-10, and 1e-16 / step = 1e-11 of rounding
  for (size_t i = 0; i < parameter.size(); ++i) {
    const double saved = parameter[i];
    parameter[i] = saved + kStep;
    const double up = p.loss();
    parameter[i] = saved - kStep;
    const double down = p.loss();
    parameter[i] = saved;
    ASSERT_NEAR((up - down) / (2 * kStep), gradient[i], 2e-7 * (1 + std::abs(gradient[i]))) << name << " " << i;
  }
}

constexpr ActivationKind kKinds[] = {ActivationKind::kIdentity, ActivationKind::kRelu, ActivationKind::kLeakyRelu,
                                     ActivationKind::kSigmoid,  ActivationKind::kTanh, ActivationKind::kGelu,
                                     ActivationKind::kGeluTanh, ActivationKind::kSilu};

// N, C, H, W = 3, 2, 4, 5: all different and above 1.
TEST(Reference, agrees_with_central_differences_for_every_layout_activation_and_residual) {
  for (const NormLayout layout : {NormLayout::kChannelsLast, NormLayout::kChannelsFirst}) {
    for (const NormShape& shape : {NormShape{3, 2, 4 * 5, layout}, NormShape{5, 4, 1, layout}}) {
      for (const ActivationKind kind : kKinds) {
        for (const bool with_residual : {false, true}) {
          for (const bool batch_statistics : {true, false}) {
            const size_t count = static_cast<size_t>(shape.n * shape.c * shape.s);
            const size_t channels = static_cast<size_t>(shape.c);
            Problem p{shape,
                      {kind, 0.1f},
                      batch_statistics,
                      random_doubles(count, 1, 0.7),
                      random_doubles(count, 2),
                      random_doubles(channels, 3, 1),
                      random_doubles(channels, 4),
                      {},
                      {}};
            if (with_residual) p.residual = random_doubles(count, 5);
            for (size_t c = 0; c < channels; ++c) p.frozen.push_back({0.3 + 0.1 * static_cast<double>(c), 1.5});
            const auto scale = batch_statistics ? scale_of(moments(p.x, shape), kEps) : p.frozen;
            const Gradient g =
                gradient(p.x, p.dy, shape, scale, p.gamma, p.beta, p.activation, p.residual, batch_statistics);
            SCOPED_TRACE(name_of(kind));
            expect_matches_differences(p, p.x, g.dx, "dx");
            expect_matches_differences(p, p.gamma, g.dgamma, "dgamma");
            expect_matches_differences(p, p.beta, g.dbeta, "dbeta");
            if (with_residual) expect_matches_differences(p, p.residual, g.dresidual, "dresidual");
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Reference, normalizes_a_small_example_worked_out_by_hand) {
  // Channel 0: 1, 3 (mean 2, variance 1). Channel 1: 0, 8 (mean 4, variance 16).
  const NormShape shape{2, 2, 1, NormLayout::kChannelsLast};
  const Values x = {1, 0, 3, 8};
  const auto m = moments(x, shape);
  EXPECT_EQ(m[0].mean, 2);
  EXPECT_EQ(m[0].m2, 2);
  EXPECT_EQ(m[1].mean, 4);
  EXPECT_EQ(m[1].m2, 32);
  const Values y = normalize(x, shape, scale_of(m, 0), {10, 1}, {0, 5}, {}, {});
  EXPECT_EQ(y, (Values{-10, 4, 10, 6}));
}

TEST(Reference, places_channels_as_the_layout_says) {
  // Channel 10 of 19 is lane 2 of the second block by 8, of three; lane 10 of the first by 16, of two.
  EXPECT_EQ(offset({2, 19, 5, NormLayout::kBlocked8}, 1, 10, 4), 3 * 5 * 8 + (1 * 5 + 4) * 8 + 2);
  EXPECT_EQ(offset({2, 19, 5, NormLayout::kBlocked16}, 1, 10, 4), 2 * 5 * 16 + 4 * 16 + 10);
  EXPECT_EQ(example_size({2, 19, 5, NormLayout::kBlocked8}), 24 * 5);
  EXPECT_EQ(example_size({2, 19, 5, NormLayout::kBlocked16}), 32 * 5);
  EXPECT_EQ(example_size({2, 19, 5, NormLayout::kChannelsLast}), 19 * 5);
  EXPECT_EQ(offset({2, 3, 5, NormLayout::kChannelsLast}, 1, 2, 4), (1 * 5 + 4) * 3 + 2);
  EXPECT_EQ(offset({2, 3, 5, NormLayout::kChannelsFirst}, 1, 2, 4), (1 * 3 + 2) * 5 + 4);
}

// The same values in another order: the same results in that order, 0 in the padding, which holds NaN here.
TEST(Reference, gives_the_same_results_in_every_layout) {
  const NormShape first{3, 19, 4, NormLayout::kChannelsFirst};
  const size_t count = static_cast<size_t>(3 * 19 * 4);
  const Values x = random_doubles(count, 1, 0.7), dy = random_doubles(count, 2), residual = random_doubles(count, 3);
  const Values gamma = random_doubles(19, 4, 1), beta = random_doubles(19, 5);
  const Activation activation{ActivationKind::kSigmoid};  // not 0 at 0
  const auto m = moments(x, first);
  const auto scale = scale_of(m, kEps);
  const Values y = normalize(x, first, scale, gamma, beta, activation, residual);
  const Gradient g = gradient(x, dy, first, scale, gamma, beta, activation, residual, true);
  for (const NormLayout layout : {NormLayout::kChannelsLast, NormLayout::kBlocked8, NormLayout::kBlocked16}) {
    NormShape shape = first;
    shape.layout = layout;
    const size_t padded = static_cast<size_t>(shape.n * example_size(shape));
    const auto for_all = [&](const auto& f) {
      for (int64_t n = 0; n < shape.n; ++n) {
        for (int64_t c = 0; c < shape.c; ++c) {
          for (int64_t s = 0; s < shape.s; ++s) {
            f(static_cast<size_t>(offset(first, n, c, s)), static_cast<size_t>(offset(shape, n, c, s)));
          }
        }
      }
    };
    const auto there = [&](const Values& values) {
      Values result(padded, std::numeric_limits<double>::quiet_NaN());
      for_all([&](size_t from, size_t to) { result[to] = values[from]; });
      return result;
    };
    const auto expect_there = [&](const Values& actual, const Values& expected) {
      Values all = there(expected);
      for (double& v : all) v = std::isnan(v) ? 0 : v;
      EXPECT_EQ(actual, all);
    };
    const Values x_there = there(x), residual_there = there(residual);
    const auto m_there = moments(x_there, shape);
    for (size_t c = 0; c < m.size(); ++c) {
      EXPECT_EQ(m_there[c].mean, m[c].mean);
      EXPECT_EQ(m_there[c].m2, m[c].m2);
    }
    expect_there(normalize(x_there, shape, scale, gamma, beta, activation, residual_there), y);
    const Gradient g_there = gradient(x_there, there(dy), shape, scale, gamma, beta, activation, residual_there, true);
    expect_there(g_there.dx, g.dx);
    expect_there(g_there.dresidual, g.dresidual);
    EXPECT_EQ(g_there.dgamma, g.dgamma);
    EXPECT_EQ(g_there.dbeta, g.dbeta);
  }
}

// Values from tables of the functions (Abramowitz and Stegun, 26.1 for the normal distribution).
TEST(Reference, knows_the_activations) {
  EXPECT_NEAR(activate(1, {ActivationKind::kGelu}), 0.8413447460685429, 1e-15);
  EXPECT_NEAR(activate(1, {ActivationKind::kSigmoid}), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(activate(1, {ActivationKind::kTanh}), 0.7615941559557649, 1e-15);
  EXPECT_NEAR(activate(1, {ActivationKind::kSilu}), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(activate(1, {ActivationKind::kGeluTanh}), 0.8411919906082768, 1e-12);
  EXPECT_EQ(activate(-2, {ActivationKind::kLeakyRelu, 0.25f}), -0.5);
  EXPECT_EQ(activate(-2, {ActivationKind::kRelu}), 0);
  EXPECT_EQ(activation_derivative(0, {ActivationKind::kRelu}), 0);
}

}  // namespace
}  // namespace evenkeel::kernels::reference
