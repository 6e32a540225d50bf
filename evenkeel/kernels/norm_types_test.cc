// Element types: fp64 against the oracle, bf16 and fp16 as storage of what fp32 computes, and their conversions, every bit pattern.
#include <gtest/gtest.h>

#include <array>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr NormType kHalfTypes[] = {NormType::kBF16, NormType::kF16};

const BinaryFormat& format_of(NormType type) { return type == NormType::kBF16 ? kBf16Format : kF16Format; }

// ---- the tests' own conversions -----------------------------------------------------------------------------------------

TEST(BinaryFormats, have_the_bits_of_known_numbers) {
  EXPECT_EQ(bits_of(1, kF16Format), 0x3c00);
  EXPECT_EQ(bits_of(-2, kF16Format), 0xc000);
  EXPECT_EQ(bits_of(65504, kF16Format), 0x7bff);
  EXPECT_EQ(bits_of(0x1p-14, kF16Format), 0x0400);
  EXPECT_EQ(bits_of(0x1p-24, kF16Format), 0x0001);
  EXPECT_EQ(bits_of(0x1.ff8p-15, kF16Format), 0x03ff);
  EXPECT_EQ(bits_of(kInf, kF16Format), 0x7c00);
  EXPECT_EQ(bits_of(1, kBf16Format), 0x3f80);
  EXPECT_EQ(bits_of(-0.0, kBf16Format), 0x8000);
  EXPECT_EQ(bits_of(0x1.fep127, kBf16Format), 0x7f7f);
  EXPECT_EQ(bits_of(-kInf, kBf16Format), 0xff80);
  for (const BinaryFormat& format : {kBf16Format, kF16Format}) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const double v = value_of(static_cast<uint16_t>(bits), format);
      if (std::isnan(v)) continue;
      ASSERT_EQ(bits_of(v, format), bits);
      ASSERT_EQ(rounded_to(v, format), v);
    }
  }
}

TEST(BinaryFormats, round_to_nearest_and_ties_to_even) {
  EXPECT_EQ(rounded_to(1 + 0x1p-11, kF16Format), 1);
  EXPECT_EQ(rounded_to(1 + 0x3p-11, kF16Format), 1 + 0x1p-9);
  EXPECT_EQ(rounded_to(1 + 0x1.0001p-11, kF16Format), 1 + 0x1p-10);
  EXPECT_EQ(rounded_to(-1 - 0x1p-8, kBf16Format), -1);
  EXPECT_EQ(rounded_to(1 + 0x3p-8, kBf16Format), 1 + 0x1p-6);
  EXPECT_EQ(rounded_to(65519.99, kF16Format), 65504);
  EXPECT_EQ(rounded_to(65520, kF16Format), kInf);
  EXPECT_EQ(rounded_to(0x1p-25, kF16Format), 0);
  EXPECT_EQ(rounded_to(0x1.8p-24, kF16Format), 0x1p-23);
  EXPECT_EQ(rounded_to(0x1.0001p-25, kF16Format), 0x1p-24);
}

// ---- every bit pattern ----------------------------------------------------------------------------------------------------

// All values of a 16-bit type.
Values all_values(NormType type) {
  Values values(0x10000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = value_of(static_cast<uint16_t>(i), format_of(type));
  return values;
}

// Equal or both NaN; or 0 where the result or what it came from is below the normal numbers of fp32 (and bf16): flushed.
testing::AssertionResult is_value(double actual, double expected, double from) {
  if (actual == expected || (std::isnan(actual) && std::isnan(expected))) return testing::AssertionSuccess();
  if (std::min(std::abs(expected), std::abs(from)) <= 0x1p-126 && actual == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << std::hexfloat << actual << " for " << expected << " from " << from;
}

// Products of a gamma of few bits are exact in fp32: what is seen is one conversion from the type and one to it.
TEST(NormTypes, maps_every_16_bit_value_and_rounds_once) {
  const Values gamma = {1, 0.5, 1.5, -1, 1 + 0x1p-10, 0x3p-12, 1 + 0x1p-8 + 0x1p-9, 0x1.7p9, 0x1p-15, -0x1.01p-3};
  const int64_t channels = static_cast<int64_t>(gamma.size());
  std::vector<NormScale> scale(gamma.size());
  for (const NormType type : kHalfTypes) {
    const Values all = all_values(type);
    for (const NormLayout layout : kLayouts) {
      const NormShape shape{8, channels, 0x2000, layout, type};
      Values x(size_of(shape)), expected(x.size());
      for (int64_t n = 0; n < shape.n; ++n) {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t s = 0; s < shape.s; ++s) {
            const size_t i = logical_index(shape, n, c, s);
            x[i] = all[static_cast<size_t>(n * shape.s + s)];
            expected[i] = rounded_to(x[i] * gamma[static_cast<size_t>(c)], format_of(type));
          }
        }
      }
      NormArray from(shape, x);
      for_each_target([&] {
        if (kSanitized && !has_fused_multiply_add()) return;
        NormArray to(shape);
        normalize(from.in(), shape, {scale.data(), gamma.data()}, {}, nullptr, to.out(), 1);
        const Values y = to.values();
        for (size_t i = 0; i < y.size(); ++i) ASSERT_TRUE(is_value(y[i], expected[i], x[i])) << describe(shape);
      });
      if (HasFatalFailure()) return;
    }
  }
}

// A single value per channel is its own mean, and its dy its own sum.
TEST(NormTypes, reads_every_16_bit_value_into_sums) {
  for (const NormType type : kHalfTypes) {
    const Values all = all_values(type);
    for (const NormLayout layout : kLayouts) {
      const NormShape shape{1, 0x10000, 1, layout, type};
      NormArray x(shape, all), ones(shape, Values(all.size(), 1.0));
      for_each_target([&] {
        NormWorkspace workspace(shape);
        std::vector<Moments> m(all.size());
        moments(x.in(), shape, workspace.get(), 1, m);
        const std::vector<NormScale> scale(all.size());
        std::vector<GradientSums> sums(all.size());
        gradient_sums(ones.in(), x.in(), shape, {scale.data()}, {}, nullptr, workspace.get(), 1, sums);
        for (size_t i = 0; i < all.size(); ++i) {
          if (std::isfinite(all[i])) {
            ASSERT_TRUE(is_value(m[i].mean, all[i], all[i])) << describe(shape);
            ASSERT_EQ(m[i].m2, 0) << all[i];
          } else {
            ASSERT_FALSE(std::isfinite(m[i].mean)) << i;
          }
          ASSERT_EQ(std::isfinite(sums[i].dy), std::isfinite(all[i])) << describe(shape) << " " << i;
          ASSERT_EQ(std::isfinite(sums[i].dy_xmu), std::isfinite(all[i])) << describe(shape) << " " << i;
          if (!std::isfinite(all[i])) continue;
          ASSERT_TRUE(is_value(sums[i].dy, all[i], all[i])) << describe(shape);
          ASSERT_TRUE(is_value(sums[i].dy_xmu, all[i], all[i])) << describe(shape);
        }
      });
      if (HasFatalFailure()) return;
    }
  }
}

TEST(NormTypes, passes_every_16_bit_gradient_through) {
  for (const NormType type : kHalfTypes) {
    const Values all = all_values(type);
    for (const NormLayout layout : kLayouts) {
      const NormShape shape{8, 2, 0x1000, layout, type};
      Values ones(all.size(), 1.0);
      NormArray x(shape, ones), dy(shape, all), residual(shape, ones);
      const std::vector<NormScale> scale(2);
      const std::vector<GradientSums> sums(2);
      for_each_target([&] {
        NormArray dx(shape), dresidual(shape);
        gradient_input(x.in(), dy.in(), shape, {scale.data()}, {}, residual.in(), sums, false, dx.out(),
                       dresidual.out(), 1);
        const Values to_x = dx.values(), to_residual = dresidual.values();
        for (size_t i = 0; i < all.size(); ++i) {
          ASSERT_TRUE(is_value(to_x[i], all[i], all[i])) << describe(shape);
          ASSERT_TRUE(is_value(to_residual[i], all[i], all[i])) << describe(shape);
        }
      });
      if (HasFatalFailure()) return;
    }
  }
}

// ---- against fp32 and the oracle ------------------------------------------------------------------------------------------

// Storage is all that 16-bit types are: the same values as floats give the same moments and sums to the bit, and the
// results of fp32, rounded once.
TEST(NormTypes, computes_16_bit_data_as_fp32_and_rounds_the_results) {
  for_each_target([] {
    uint64_t seed = 200;
    for (const NormType type : kHalfTypes) {
      for (const NormLayout layout : kLayouts) {
        for (const NormShape& shape : {NormShape{9, 19, 1, layout, type}, NormShape{3, 33, 7, layout, type},
                                       NormShape{10, 5, 49, layout, type}, NormShape{5, 17, 64, layout, type},
                                       NormShape{3, 9, 1023, layout, type}, NormShape{2, 3, 2100, layout, type}}) {
          ++seed;
          const NormCase narrow(shape, {kKinds[seed % 8], kSlope}, seed % 3 != 0, seed);
          NormCase wide = narrow;
          wide.shape.type = NormType::kF32;
          const NormWay way{.misalignment = seed % 16, .at_once = seed % 2 == 0, .with_mask = seed % 5 < 3};
          NormOutcome rounded = run(wide, way);
          for (Values* values : {&rounded.y, &rounded.dx, &rounded.dresidual}) {
            for (double& v : *values) v = stored(v, type);
          }
          EXPECT_EQ(difference(rounded, run(narrow, way)), "")
              << describe(shape) << " " << name_of(narrow.activation.kind);
        }
      }
    }
  });
}

TEST(NormTypes, agrees_with_the_oracle_for_every_type_layout_and_activation) {
  uint64_t seed = 300;
  for (const NormType type : kTypes) {
    for (const NormLayout layout : kLayouts) {
      for (const ActivationKind kind : kKinds) {
        for (const NormShape& shape : {NormShape{9, 19, 1, layout, type}, NormShape{3, 21, 9, layout, type},
                                       NormShape{9, 3, 100, layout, type}, NormShape{2, 2, 2100, layout, type}}) {
          ++seed;
          const NormCase k(shape, {kind, kSlope}, seed % 2 == 0, seed);
          const Oracle oracle(k);
          for_each_target([&] {
            SCOPED_TRACE(describe(shape) + " " + name_of(kind) + " seed " + std::to_string(seed));
            expect_close(k, oracle,
                         run(k, {.misalignment = seed % 16, .in_place = seed % 3 == 0, .at_once = seed % 5 < 2}));
          });
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(NormTypes, gives_the_same_bits_for_every_layout_target_and_number_of_threads) {
  for (const NormType type : kTypes) {
    for (const NormShape& shape :
         {NormShape{33, 19, 65, kFirst, type}, NormShape{9, 64, 49, kFirst, type}, NormShape{300, 130, 1, kFirst, type},
          NormShape{3, 20, 784, kFirst, type}, NormShape{2, 3, 9000, kFirst, type}}) {
      const NormCase k(shape, {ActivationKind::kLeakyRelu, kSlope}, shape.c % 2 == 1, 401);
      std::vector<NormOutcome> of_targets;
      for_each_fast_target([&] {
        of_targets.push_back(run(k, {.with_mask = true}));
        EXPECT_EQ(difference(of_targets.front(), of_targets.back()), "") << describe(shape);
        for (const NormLayout layout : kLayouts) {
          for (const int threads : {2, 3, 8}) {
            const NormWay way{.threads = threads, .at_once = threads != 2, .with_mask = threads == 3};
            EXPECT_EQ(difference(of_targets.back(), run(k.in(layout), way)), "")
                << describe(k.in(layout).shape) << " threads " << threads;
          }
        }
      });
    }
  }
}

// ---- fp64 -----------------------------------------------------------------------------------------------------------------

// The mean is kept as a double: half an ulp of it is all that may be lost. The variance loses a little more of a large
// mean in the tree, by the last term of eq. 14 (docs/math.md).
TEST(NormTypes, is_accurate_in_fp64_whatever_the_mean) {
  for (const double mean : {0.0, 1.0, 1e3, 1e6}) {
    for (const NormLayout layout : kLayouts) {
      for (const NormShape& shape :
           {NormShape{300, 9, 1, layout, NormType::kF64}, NormShape{20, 5, 49, layout, NormType::kF64},
            NormShape{2, 3, 9000, layout, NormType::kF64}}) {
        const NormCase k(shape, {}, false, 501, mean, 1);
        const Oracle oracle(k);
        const double of_mean = 4 * 0x1p-53 * mean;
        // Of the tree of blocks, of 8 examples and of pieces, and what their lanes add.
        const double levels = std::ceil(std::log2(block_count(shape.n))) + 3 +
                              std::ceil(std::log2(std::max<int64_t>(1, (shape.s + 4095) / 4096)));
        const double of_tree = 2 * levels * std::sqrt(levels) * 0x1p-53 * (mean + 3);
        for_each_target([&] {
          const NormOutcome o = run(k);
          for (size_t c = 0; c < oracle.moments.size(); ++c) {
            ASSERT_NEAR(o.moments[c].mean, oracle.moments[c].mean, 1e-15 + of_mean) << describe(shape);
            ASSERT_NEAR(o.moments[c].m2 / oracle.moments[c].m2, 1, 1e-13 + of_tree) << describe(shape);
          }
          for (size_t i = 0; i < o.y.size(); ++i)
            ASSERT_NEAR(o.y[i], oracle.y[i], 1e-14 * 8 + 2 * of_mean) << describe(shape);
          ASSERT_LE(distance(o.dx, oracle.gradient.dx), (1e-13 + 2 * of_mean) * norm_of(oracle.gradient.dx));
        });
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(NormTypes, keeps_all_bits_of_fp64_data_and_parameters) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      const NormShape shape{9, 19, 5, layout, NormType::kF64};
      const Values x = random_values(size_of(shape), 511, 0, 1, NormType::kF64);
      const Values gamma = random_values(19, 512, 1, 0.5, NormType::kF64);
      const std::vector<NormScale> scale(19);
      NormArray from(shape, x), to(shape);
      normalize(from.in(), shape, {scale.data(), gamma.data()}, {}, nullptr, to.out(), 1);
      const Values y = to.values();
      for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], x[i] * gamma[i / 5 % 19]) << describe(shape);
    }
  });
}

// Beyond the floats in size: what computes in fp32 somewhere gives infinity or 0.
TEST(NormTypes, covers_the_range_of_fp64) {
  for_each_target([] {
    for (const double size : {1e-100, 1e-50, 1e50, 1e100}) {
      for (const NormLayout layout : kLayouts) {
        const NormShape shape{10, 5, 49, layout, NormType::kF64};
        NormCase k(shape, {ActivationKind::kRelu}, false, 521, 0.5 * size, size);
        const auto exact = reference::moments(k.x, logical(shape));
        const auto m = moments_of(k.x, shape);
        for (size_t c = 0; c < m.size(); ++c) {
          ASSERT_NEAR(m[c].mean / exact[c].mean, 1, 1e-13) << size;
          ASSERT_NEAR(m[c].m2 / exact[c].m2, 1, 1e-13) << size;
        }
        if (size > 1) expect_close_y(k, Oracle(k), run(k));
      }
    }
  });
}

// ---- the range of fp16 ----------------------------------------------------------------------------------------------------

TEST(NormTypes, sums_the_largest_values_of_fp16_and_overflows_to_infinity_only_in_the_result) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      const NormShape shape{16, 3, 100, layout, NormType::kF16};
      NormCase k(shape, {}, false, 531);
      for (size_t i = 0; i < k.x.size(); ++i) k.x[i] = i % 2 ? 65504 : -65504;
      k.gamma.set({1, 70000, 65000}, false);
      k.beta.set({}, false);
      const NormOutcome o = run(k);
      for (size_t c = 0; c < 3; ++c) {
        ASSERT_NEAR(o.moments[c].mean, 0, 1e-6 * 65504);
        ASSERT_NEAR(o.moments[c].m2, 1600 * 65504.0 * 65504.0, 5e-7 * o.moments[c].m2);
      }
      for (size_t i = 0; i < k.x.size(); ++i) {
        const double expected = std::array{1.0, kInf, 64992.0}[i / 100 % 3];  // distance 32: 65000 is no number of fp16
        ASSERT_EQ(o.y[i], k.x[i] > 0 ? expected : -expected) << describe(shape);
      }
    }
  });
}

TEST(NormTypes, propagates_nan_and_infinity_of_every_type_within_their_channel_only) {
  for_each_target([] {
    for (const NormType type : kTypes) {
      for (const NormLayout layout : kLayouts) {
        for (const double bad : {std::numeric_limits<double>::quiet_NaN(), kInf, -kInf}) {
          NormCase k({9, 19, 5, layout, type}, {ActivationKind::kRelu}, false, 541);
          k.x[logical_index(k.shape, 8, 7, 3)] = bad;
          const NormOutcome o = run(k);
          for (size_t i = 0; i < o.y.size(); ++i) {
            const size_t c = i / 5 % 19;
            ASSERT_EQ(std::isnan(o.y[i]), c == 7) << describe(k.shape) << " " << bad;
            ASSERT_EQ(std::isnan(o.dx[i]), c == 7) << describe(k.shape) << " " << bad;
            ASSERT_EQ(std::isfinite(o.moments[c].m2), c != 7) << describe(k.shape) << " " << bad;
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace evenkeel::kernels
