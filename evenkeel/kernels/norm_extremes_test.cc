// Constant channels, NaN and infinity, few values, values of every size, denormals.
#include <gtest/gtest.h>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Calls f for each layout and each of some shapes: dense, less than a vector, pieces of several and of one example.
template <class Function>
void for_each_shape(NormType type, const Function& f) {
  for (const NormLayout layout : kLayouts) {
    for (const NormShape& shape : {NormShape{13, 3, 1, layout, type}, NormShape{20, 19, 7, layout, type},
                                   NormShape{11, 3, 77, layout, type}, NormShape{1, 5, 100, layout, type},
                                   NormShape{9, 18, 1030, layout, type}, NormShape{2, 3, 3000, layout, type}}) {
      if (kSanitized && size_of(shape) > 50000) continue;
      f(shape);
    }
  }
}

TEST(Norm, turns_a_constant_channel_into_exactly_beta) {
  for_each_target([] {
    for (const NormType type : kTypes) {
      if (!has_fused_multiply_add() && type != NormType::kF32) continue;
      for_each_shape(type, [&](const NormShape& shape) {
        for (const double number : {0.0, 0.1, -3e4, 1e-4, 12345.678, 1e-20, -3e7}) {
          if (type == NormType::kF16 && (std::abs(number) > 65504 || (number != 0 && std::abs(number) < 1e-4)))
            continue;
          NormCase k(shape, {}, false, 21);
          const double constant = stored(number, type);
          k.x.assign(k.x.size(), constant);
          const Values beta(static_cast<size_t>(shape.c), stored(0.3, NormType::kF32));
          k.beta.set(beta, type == NormType::kF64);
          const NormOutcome o = run(k, {.at_once = number > 0});
          for (const Moments& channel : o.moments) {
            ASSERT_EQ(channel.mean, constant) << describe(shape);
            ASSERT_EQ(channel.m2, 0) << describe(shape) << " " << constant;
          }
          for (const double y : o.y) ASSERT_EQ(y, stored(beta[0], type)) << describe(shape) << " " << constant;
        }
      });
    }
  });
}

// With a residual, the channel is act(beta + r), whatever gamma.
TEST(Norm, turns_a_constant_channel_into_exactly_the_activation_of_beta_and_residual) {
  for_each_target([] {
    for_each_shape(NormType::kF32, [&](const NormShape& shape) {
      if (size_of(shape) > 20000) return;
      NormCase k(shape, {ActivationKind::kRelu}, true, 22);
      k.x.assign(k.x.size(), stored(-7.3, NormType::kF32));
      const NormOutcome o = run(k);
      for (size_t i = 0; i < o.y.size(); ++i) {
        const size_t c = i / static_cast<size_t>(shape.s) % static_cast<size_t>(shape.c);
        ASSERT_EQ(o.y[i], std::max(0.0, stored(k.beta.values[c] + k.residual[i], NormType::kF32))) << describe(shape);
      }
    });
  });
}

// Values that differ in their last bit only, where a subtraction could go below zero.
TEST(Norm, never_gives_a_negative_variance) {
  for_each_target([] {
    RandomStream random(17, RandomUse::kInitialize);
    for_each_shape(NormType::kF32, [&](const NormShape& shape) {
      for (const float base : {1.0f, 0.1f, 3e6f, 1e-30f}) {
        Values x(size_of(shape));
        for (double& v : x) v = static_cast<double>(random.next_below(50) == 0 ? std::nextafter(base, 2 * base) : base);
        for (const Moments& m : moments_of(x, shape)) {
          ASSERT_GE(m.m2, 0) << describe(shape);
          ASSERT_NEAR(m.mean, static_cast<double>(base), 1.2e-7 * static_cast<double>(base)) << describe(shape);
        }
      }
    });
  });
}

TEST(Norm, propagates_nan_and_infinity_within_their_channel_only) {
  for_each_target([] {
    for_each_shape(NormType::kF32, [&](const NormShape& shape) {
      if (size_of(shape) > 20000) return;
      for (const double bad : {kNan, -kNan, kInf, -kInf}) {
        for (const auto& [n, s] :
             {std::pair<int64_t, int64_t>{0, shape.s - 1}, {shape.n - 1, 0}, {shape.n / 2, shape.s / 2}}) {
          NormCase k(shape, {ActivationKind::kRelu}, false, 41);
          k.x[logical_index(shape, n, 1, s)] = bad;
          const NormOutcome o = run(k, {.at_once = n == 0});
          for (size_t c = 0; c < o.moments.size(); ++c) {
            ASSERT_EQ(std::isfinite(o.moments[c].mean), c != 1) << describe(shape) << " " << bad;
            ASSERT_EQ(std::isfinite(o.moments[c].m2), c != 1) << describe(shape) << " " << bad;
            ASSERT_EQ(std::isfinite(o.sums[c].dy_xmu), c != 1) << describe(shape) << " " << bad;
          }
          for (size_t i = 0; i < o.y.size(); ++i) {
            const size_t c = i / static_cast<size_t>(shape.s) % static_cast<size_t>(shape.c);
            ASSERT_EQ(std::isnan(o.y[i]), c == 1) << describe(shape) << " " << bad;
            ASSERT_EQ(std::isnan(o.dx[i]), c == 1) << describe(shape) << " " << bad;
          }
        }
      }
    });
  });
}

// A gradient that is not finite spoils its own channel and no other.
TEST(Norm, propagates_nan_of_dy_within_its_channel_only) {
  for_each_target([] {
    for_each_shape(NormType::kF32, [&](const NormShape& shape) {
      if (size_of(shape) > 20000) return;
      for (const double bad : {kNan, kInf}) {
        NormCase k(shape, {ActivationKind::kIdentity}, false, 43);
        k.dy[logical_index(shape, shape.n - 1, 2, shape.s / 2)] = bad;
        const NormOutcome o = run(k, {.at_once = bad == kInf});
        for (size_t i = 0; i < o.dx.size(); ++i) {
          const size_t c = i / static_cast<size_t>(shape.s) % static_cast<size_t>(shape.c);
          ASSERT_EQ(std::isfinite(o.dx[i]), c != 2) << describe(shape) << " " << bad;
          ASSERT_EQ(std::isfinite(o.sums[c].dy), c != 2) << describe(shape) << " " << bad;
        }
      }
    });
  });
}

// xhat is 1 and -1 but for eps, and dx the small difference of large terms: expect_close() bounds it by those.
TEST(Norm, normalizes_two_values) {
  for (const NormLayout layout : kLayouts) {
    for (const NormType type : {NormType::kF32, NormType::kF64}) {
      for (const NormShape& shape : {NormShape{2, 19, 1, layout, type}, NormShape{1, 19, 2, layout, type}}) {
        for (const double mean : {0.5, 1e4}) {
          if (mean > 1 && type == NormType::kF64) continue;  // the oracle's own mean is a double
          const NormCase k(shape, {}, false, 51, mean);
          const Oracle oracle(k);
          for_each_target([&] {
            const NormOutcome o = run(k);
            const double tolerance = type == NormType::kF32 ? 2e-7 : 1e-12;
            for (size_t c = 0; c < 19; ++c) {
              ASSERT_NEAR(o.moments[c].m2 / oracle.moments[c].m2, 1, 5 * tolerance) << describe(shape);
              ASSERT_NEAR(o.moments[c].mean / oracle.moments[c].mean, 1, tolerance) << describe(shape);
            }
            SCOPED_TRACE(describe(shape));
            expect_close_y(k, oracle, o);
            expect_close_gradient(k, oracle, o);
          });
          if (HasFailure()) return;
        }
      }
    }
  }
}

// A single value is its own mean: y is beta, and dx 0 whatever dy.
TEST(Norm, normalizes_a_single_value_to_beta) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const NormType type : kTypes) {
        const NormCase k({1, 19, 1, layout, type}, {}, false, 53, 1e3, 100);
        const NormOutcome o = run(k);
        for (size_t c = 0; c < 19; ++c) {
          ASSERT_EQ(o.moments[c].mean, k.x[c]) << describe(k.shape);
          ASSERT_EQ(o.moments[c].m2, 0) << describe(k.shape);
          ASSERT_EQ(o.y[c], stored(k.beta.values[c], type)) << describe(k.shape);
          ASSERT_EQ(o.dx[c], 0) << describe(k.shape);
        }
      }
    }
  });
}

// A mean of 10^6 standard deviations, in every layout (the exact bounds of y are those of is_accurate_...).
TEST(Norm, is_accurate_for_huge_means_in_every_layout) {
  for (const int64_t s : {1, 7, 49, 64, 196, 1030, 2500}) {
    const int64_t n = std::max<int64_t>(1, 2000 / s);
    const NormCase k({n, 19, s, kFirst}, {}, false, 61, 1e6, 1);
    const auto exact = reference::moments(k.x, k.shape);
    Oracle oracle(k);
    for_each_target([&] {
      for (const NormLayout layout : kLayouts) {
        const NormCase here = k.in(layout);
        const NormOutcome o = run(here);
        for (size_t c = 0; c < 19; ++c) {
          ASSERT_NEAR(o.moments[c].m2 / exact[c].m2, 1, 2e-7) << describe(here.shape);
          ASSERT_NEAR(o.moments[c].mean, exact[c].mean, 1e-7) << describe(here.shape);  // of a standard deviation
        }
        expect_close_y(here, oracle, o);
        ASSERT_LE(distance(o.dx, oracle.gradient.dx), 6e-7 * norm_of(oracle.gradient.dx)) << describe(here.shape);
      }
    });
    if (HasFailure()) return;
  }
}

// Squares of deviations stay within the floats: those below 2^-126, which are flushed, are 10^-8 of a variance of 1e-30.
TEST(Norm, is_accurate_for_values_of_every_size) {
  for (const double size : {1e-15, 1e-12, 1e-6, 1e6, 1e12, 1e18}) {
    for (const NormShape& shape : {NormShape{40, 19, 1, kLast}, NormShape{9, 5, 49, kFirst},
                                   NormShape{3, 5, 1030, kFirst}, NormShape{9, 5, 77, NormLayout::kBlocked8}}) {
      const NormCase k(shape, {}, false, 71, 0.5 * size, size);
      const auto exact = reference::moments(k.x, logical(shape));
      const Oracle oracle(k);
      for_each_target([&] {
        const NormOutcome o = run(k);
        for (size_t c = 0; c < exact.size(); ++c) {
          ASSERT_NEAR(o.moments[c].m2 / exact[c].m2, 1, 5e-7) << describe(shape) << " " << size;
          ASSERT_NEAR(o.moments[c].mean, exact[c].mean, 1e-6 * size) << describe(shape) << " " << size;
        }
        SCOPED_TRACE(size);
        expect_close_y(k, oracle, o);
      });
      if (HasFailure()) return;
    }
  }
}

// Denormals count as 0 or as what they are; in neither case does anything but beta come out, and the rest of a channel is
// not disturbed. The caller's own setting stays.
TEST(Norm, takes_denormals_as_nothing_or_as_they_are) {
  const float denormal = 1e-40f;
  for_each_target([&] {
    for_each_shape(NormType::kF32, [&](const NormShape& shape) {
      if (size_of(shape) > 20000) return;
      NormCase k(shape, {}, false, 81);
      NormCase zeros = k;
      for (size_t i = 0; i < k.x.size(); ++i) {
        const size_t c = i / static_cast<size_t>(shape.s) % static_cast<size_t>(shape.c);
        if (c == 0) {
          k.x[i] = static_cast<double>(denormal);
          zeros.x[i] = 0;
        } else if (i % 3 == 0) {
          k.x[i] = static_cast<double>(i % 2 ? denormal : -denormal);
          zeros.x[i] = 0;
        }
      }
      const NormOutcome o = run(k, {.threads = 2}), with_zeros = run(zeros, {.threads = 2});
      EXPECT_EQ(o.y, with_zeros.y) << describe(shape);
      EXPECT_TRUE(o.moments[0].mean == 0 || o.moments[0].mean == static_cast<double>(denormal)) << describe(shape);
      EXPECT_EQ(o.moments[0].m2, 0) << describe(shape);
      for (size_t c = 1; c < o.moments.size(); ++c) {
        ASSERT_NEAR(o.moments[c].m2, with_zeros.moments[c].m2, 1e-30) << describe(shape);
      }
    });
    volatile float half = denormal;
    half = half / 2;
    EXPECT_NE(half, 0);  // not flushed out here
  });
}

}  // namespace
}  // namespace evenkeel::kernels
