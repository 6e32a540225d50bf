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
  EXPECT_EQ(offset({2, 3, 5, NormLayout::kChannelsLast}, 1, 2, 4), (1 * 5 + 4) * 3 + 2);
  EXPECT_EQ(offset({2, 3, 5, NormLayout::kChannelsFirst}, 1, 2, 4), (1 * 3 + 2) * 5 + 4);
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
