// The norm against its oracle: forward and backward in fp32, accuracy, exact data, the summation contract.
#include "evenkeel/kernels/norm.h"

#include <gtest/gtest.h>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

void expect_close_to_oracle(const NormCase& k, const NormOutcome& o) { expect_close(k, Oracle(k), o); }

TEST(Norm, agrees_with_the_oracle_for_every_target_layout_length_and_misalignment) {
  uint64_t seed = 1;
  for (const NormLayout layout : kLayouts) {
    for (const int64_t c : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 129}) {
      for (const auto& [n, s] :
           {std::pair<int64_t, int64_t>{1, 5}, {2, 1}, {9, 1}, {17, 1}, {3, 7}, {9, 9}, {5, 16}, {2, 49}, {3, 65}}) {
        ++seed;
        // Activation, residual, misalignment and the way turn with the seed: all combinations are met.
        const bool identity_or_relu = seed % 3 != 0;
        const ActivationKind kind = identity_or_relu ? kKinds[seed % 2] : kKinds[seed / 3 % 8];
        NormCase k({n, c, s, layout}, {kind, kSlope}, seed % 5 < 2, seed);
        if (seed % 11 == 0) k.gamma.set({}, false);
        if (seed % 13 == 0) k.beta.set({}, false);
        NormWay way;
        way.misalignment = seed % 16;
        way.gap = seed % 17 < 8 ? 0 : static_cast<int64_t>(seed % 19);
        way.in_place = seed % 7 < 3;
        way.at_once = seed % 23 < 11;
        way.with_mask = seed % 2 == 0;
        const Oracle oracle(k);
        for_each_target([&] {
          SCOPED_TRACE(testing::Message() << describe(k.shape) << " " << name_of(kind) << " seed " << seed);
          expect_close(k, oracle, run(k, way));
        });
        if (HasFailure()) return;
      }
    }
  }
}

TEST(Norm, agrees_with_the_oracle_for_every_activation_with_and_without_residual) {
  for (const NormLayout layout : kLayouts) {
    for (const ActivationKind kind : kKinds) {
      for (const bool with_residual : {false, true}) {
        for (const NormShape& shape : {NormShape{6, 19, 21, layout}, NormShape{3, 5, 130, layout}}) {
          const NormCase k(shape, {kind, kSlope}, with_residual, 23);
          const Oracle oracle(k);
          for_each_target([&] {
            SCOPED_TRACE(describe(shape) + " " + name_of(kind));
            expect_close(k, oracle, run(k, {.at_once = with_residual}));
          });
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(Norm, agrees_with_the_oracle_for_wide_rows_pieces_and_groups) {
  for (const NormShape& shape :
       {NormShape{9, 513, 1, kLast}, NormShape{11, 1100, 1, kLast}, NormShape{300, 5, 1, kLast},
        NormShape{10, 700, 20, kLast}, NormShape{9, 20, 900, kLast}, NormShape{9, 3, 9000, kLast},
        NormShape{260, 4, 3, kFirst}, NormShape{10, 3, 1100, kFirst}, NormShape{2, 3, 9001, kFirst},
        NormShape{9, 21, 900, NormLayout::kBlocked8}, NormShape{2, 17, 4500, NormLayout::kBlocked16},
        NormShape{260, 20, 3, NormLayout::kBlocked16}}) {
    for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kRelu}) {
      const NormCase k(shape, {kind}, kind == ActivationKind::kRelu, 99);
      const Oracle oracle(k);
      for_each_target([&] {
        SCOPED_TRACE(describe(shape));
        expect_close(k, oracle, run(k, {.threads = 2, .misalignment = 3, .at_once = shape.n % 2 == 0}));
      });
      if (HasFailure()) return;
    }
  }
}

// Pairs x, 2 * mean - x of small integers: mean and m2 are exact in any order of summation. Neighbouring positions make a
// pair, because a part of an example is summed alone; without space, neighbouring examples do.
TEST(Norm, gives_exact_moments_of_exact_data) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const NormShape& shape :
           {NormShape{8, 5, 1, layout}, NormShape{64, 17, 1, layout}, NormShape{24, 3, 8, layout},
            NormShape{5, 33, 49, layout}, NormShape{3, 9, 1023, layout}, NormShape{16, 6, 2501, layout}}) {
        if (kSanitized && size_of(shape) > 100000) continue;
        Values x(size_of(shape));
        RandomStream random(7, RandomUse::kInitialize);
        const int64_t step_n = shape.s == 1 ? 2 : 1, step_s = shape.s == 1 ? 1 : 2;
        for (int64_t c = 0; c < shape.c; ++c) {
          for (int64_t n = 0; n < shape.n; n += step_n) {
            for (int64_t s = 0; s < shape.s; s += step_s) {
              const double mean = static_cast<double>(c + 3);
              const double deviation = static_cast<double>(random.next_below(17)) - 8;
              const bool paired = n + step_n - 1 < shape.n && s + step_s - 1 < shape.s;
              x[logical_index(shape, n, c, s)] = paired ? mean + deviation : mean;
              if (paired) x[logical_index(shape, n + step_n - 1, c, s + step_s - 1)] = mean - deviation;
            }
          }
        }
        const auto m = moments_of(x, shape, 2);
        const auto expected = reference::moments(x, logical(shape));
        for (size_t c = 0; c < m.size(); ++c) {
          ASSERT_EQ(m[c].mean, static_cast<double>(c + 3)) << describe(shape);
          ASSERT_EQ(m[c].m2, expected[c].m2) << describe(shape);
        }
      }
    }
  });
}

struct Accuracy {
  double variance = 0;  // worst relative error
  double y_ulp = 0;     // worst error in ulp of max(|gamma * xhat|, |beta|, 1)
};
// On floats in the layout's own order: ten million values need no further copies in doubles.
Accuracy accuracy_of(const NormShape& shape, double mean, uint64_t seed) {
  const size_t count = static_cast<size_t>(shape.n * reference::example_size(shape));
  const std::vector<float> x = random_floats(count, seed, mean, 1);
  const std::vector<float> gamma = random_floats(static_cast<size_t>(shape.c), seed + 1, 1, 0.5);
  const std::vector<float> beta = random_floats(static_cast<size_t>(shape.c), seed + 2);
  std::vector<Moments> m(static_cast<size_t>(shape.c));
  std::vector<NormScale> scale(m.size());
  std::vector<float> y(x.size());
  NormWorkspace workspace(shape);
  forward_training(x.data(), shape, kEps, gamma.data(), beta.data(), {}, nullptr, workspace.get(), 2, m, scale,
                   y.data());
  const Values xd = doubles(x);
  const auto exact = reference::moments(xd, shape);
  const auto z = reference::affine(xd, shape, reference::scale_of(exact, kEps), doubles(gamma), doubles(beta), {});
  Accuracy worst;
  for (int64_t c = 0; c < shape.c; ++c) {
    const size_t k = static_cast<size_t>(c);
    worst.variance = std::max(worst.variance, std::abs(m[k].m2 / exact[k].m2 - 1));
    const double b = static_cast<double>(beta[k]);
    for (int64_t n = 0; n < shape.n; ++n) {
      for (int64_t s = 0; s < shape.s; ++s) {
        const size_t i = static_cast<size_t>(reference::offset(shape, n, c, s));
        const double size = std::max({std::abs(z[i] - b), std::abs(b), 1.0});
        worst.y_ulp = std::max(worst.y_ulp, std::abs(static_cast<double>(y[i]) - z[i]) / ulp_of(size));
      }
    }
  }
  return worst;
}

void expect_accurate(int64_t values) {
  for (const double mean : {1.0, 1e2, 1e4, 1e6}) {
    for (const NormShape& shape :
         {NormShape{values, 2, 1, kLast}, NormShape{values / 125, 2, 125, kLast},
          NormShape{values / 125, 2, 125, kFirst}, NormShape{1, 2, values, kLast}, NormShape{1, 2, values, kFirst},
          NormShape{values / 125, 2, 125, NormLayout::kBlocked8}, NormShape{1, 2, values, NormLayout::kBlocked16}}) {
      // The same bits are promised for every layout: the largest need not be blocked, where two channels fill a block.
      if (values > 100000 && shape.layout != kLast && shape.layout != kFirst) continue;
      const Accuracy a = accuracy_of(shape, mean, 5);
      SCOPED_TRACE(testing::Message() << "mean/std " << mean << " " << describe(shape));
      EXPECT_LE(a.variance, 2e-7);
      EXPECT_LE(a.y_ulp, 4);
    }
  }
}

TEST(Norm, is_accurate_whatever_the_mean_and_the_number_of_values) {
  for_each_target([] {
    expect_accurate(1000);
    if (!kSanitized) expect_accurate(31000);
  });
  expect_accurate(kSanitized ? 31000
                             : 1000000);  // the best target only: another test asks for the same bits from the next
}

TEST(Norm, is_accurate_for_ten_million_values) {
  if (kSanitized) GTEST_SKIP() << "takes a minute under a sanitizer";
  const Accuracy a = accuracy_of({1280, 1, 7813, kLast}, 1e4, 5);
  EXPECT_LE(a.variance, 2e-7);
  EXPECT_LE(a.y_ulp, 4);
}

// 64 values far away stand before all others, as padding does: what follows is small beside the sums of their lanes, and is not lost.
TEST(Norm, keeps_its_bounds_where_data_start_far_away) {
  for (const NormShape& shape :
       {NormShape{9, 2, 784, kFirst}, NormShape{16, 2, 4096, kFirst}, NormShape{3, 2, 9000, kLast}}) {
    Values x = random_values(size_of(shape), 5, 1e4, 1, NormType::kF32);
    for (int64_t c = 0; c < shape.c; ++c) {
      for (int64_t p = 0; p < 64; ++p) x[logical_index(shape, 0, c, p)] = 0;
    }
    const auto exact = reference::moments(x, logical(shape));
    for_each_target([&] {
      const auto m = moments_of(x, shape);
      for (size_t c = 0; c < m.size(); ++c) ASSERT_NEAR(m[c].m2 / exact[c].m2, 1, 2e-7) << describe(shape);
    });
  }
}

// Few values lie far from all others, among them those that a shift may be guessed from: at the front, at the end, at
// regular distances. The sums are taken again about the mean. The variance is that of these few values, whose roundings
// do not average out: 5e-7, as for few values at all (and all others may be lost in the last place of such a value's lane).
TEST(Norm, survives_a_shift_from_values_that_represent_nothing) {
  for (const NormShape& shape : {NormShape{8, 3, 40, kLast}, NormShape{1, 2, 5000, kFirst},
                                 NormShape{3, 2, 700, kFirst}, NormShape{24, 3, 1, kLast}}) {
    const Values good = random_values(size_of(shape), 3, 0, 1, NormType::kF32);
    for (const int64_t distance : {1, 2, 8, 16, 21, 64, 67, 128, 156, 157, 512, 2048, 4096}) {
      for (const int64_t first : {0, 1, 15}) {
        for (const int64_t most : {1, 8, 16, 64}) {
          Values x = good;
          const int64_t values = shape.n * shape.s;
          for (int64_t i = first, changed = 0; i < values && changed < std::min(most, values / 3); i += distance) {
            for (int64_t c = 0; c < shape.c; ++c) x[logical_index(shape, i / shape.s, c, i % shape.s)] += 1e4;
            ++changed;
          }
          for (double& v : x) v = stored(v, NormType::kF32);
          const auto exact = reference::moments(x, logical(shape));
          for_each_target([&] {
            const auto m = moments_of(x, shape);
            for (size_t c = 0; c < m.size(); ++c) {
              ASSERT_NEAR(m[c].m2 / exact[c].m2, 1, 5e-7)
                  << describe(shape) << " distance " << distance << " first " << first << " most " << most;
            }
          });
          if (HasFailure()) return;
        }
      }
    }
  }
}

// The summation contract: blocks of 8 examples, each alone, folded by TreeFold.
void expect_folds_of_blocks(const NormCase& k) {
  const NormShape& shape = k.shape;
  const NormOutcome whole = run(k, {.threads = 2});
  const NormAffine affine{whole.scale.data(), k.gamma.get(), k.beta.get()};
  const bool residual = !k.residual.empty();
  NormArray x(shape, k.x), dy(shape, k.dy), r(shape);
  if (residual) r.fill(k.residual);
  std::vector<TreeFold<Moments>> trees(static_cast<size_t>(shape.c));
  std::vector<TreeFold<GradientSums>> sum_trees(trees.size());
  NormWorkspace workspace(shape);
  for (int64_t block = 0; block < block_count(shape.n); ++block) {
    NormShape part = shape;
    part.n = std::min(kBlockExamples, shape.n - block * kBlockExamples);
    const int64_t from = block * kBlockExamples * reference::example_size(shape);
    const auto of_block = [&](NormArray& array) {
      return NormInput(static_cast<const std::byte*>(array.in().data) +
                       static_cast<size_t>(from) * bytes_of(shape.type));
    };
    std::vector<Moments> m(trees.size());
    std::vector<GradientSums> sums(trees.size());
    moments(of_block(x), part, workspace.get(), 1, m);
    gradient_sums(of_block(x), of_block(dy), part, affine, k.activation, residual ? NormGate(of_block(r)) : NormGate(),
                  workspace.get(), 1, sums);
    for (size_t c = 0; c < m.size(); ++c) {
      trees[c].push(m[c]);
      sum_trees[c].push(sums[c]);
    }
  }
  for (size_t c = 0; c < trees.size(); ++c) {
    const Moments m = trees[c].fold();
    ASSERT_EQ(m.mean, whole.moments[c].mean) << describe(shape);
    ASSERT_EQ(m.m2, whole.moments[c].m2) << describe(shape);
    ASSERT_EQ(sum_trees[c].fold().dy, whole.sums[c].dy) << describe(shape);
    ASSERT_EQ(sum_trees[c].fold().dy_xmu, whole.sums[c].dy_xmu) << describe(shape);
  }
}

TEST(Norm, folds_the_moments_and_sums_of_single_blocks_by_the_tree) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const NormShape& shape :
           {NormShape{64, 100, 1, layout}, NormShape{1000, 70, 1, layout}, NormShape{37, 10, 50, layout},
            NormShape{19, 65, 196, layout}, NormShape{17, 6, 2100, layout}, NormShape{20, 20, 49, layout},
            NormShape{130, 33, 10, layout}, NormShape{9, 3, 1024, layout}, NormShape{300, 3, 63, layout}}) {
        for (const NormType type : {NormType::kF32, NormType::kF64}) {
          NormShape typed = shape;
          typed.type = type;
          if (!has_fused_multiply_add() && (size_of(shape) > 100000 || type != NormType::kF32)) continue;
          if (kSanitized && size_of(shape) > 50000) continue;
          const NormCase k(typed, {ActivationKind::kRelu}, shape.n % 2 == 0, 13);
          expect_folds_of_blocks(k);
          if (HasFatalFailure()) return;
        }
      }
    }
  });
}

TEST(Norm, gives_a_dx_that_sums_to_zero) {
  for_each_target([] {
    for (const NormShape& shape :
         {NormShape{50, 9, 12, kLast}, NormShape{50, 9, 12, kFirst}, NormShape{50, 9, 12, NormLayout::kBlocked8},
          NormShape{400, 20, 1, kLast}, NormShape{3, 5, 1100, kFirst}}) {
      const NormCase k(shape, {ActivationKind::kRelu}, false, 21, 1e3);
      const NormOutcome o = run(k);
      for (int64_t c = 0; c < shape.c; ++c) {
        double sum = 0, size = 0;
        for (int64_t n = 0; n < shape.n; ++n) {
          for (int64_t s = 0; s < shape.s; ++s) {
            const double v = o.dx[logical_index(shape, n, c, s)];
            sum += v;
            size += std::abs(v);
          }
        }
        // Each term rounds by less than 2^-22 of the terms' size.
        EXPECT_LE(std::abs(sum), 0x1p-22 * size) << describe(shape) << " channel " << c;
      }
    }
  });
}

// The mean in float is half an ulp off: 0.004 standard deviations at mean/std = 1e5. The gradient must not see it.
TEST(Norm, has_an_accurate_gradient_far_from_zero) {
  for (const NormLayout layout : kLayouts) {
    for (const NormShape& shape :
         {NormShape{30, 19, 1, layout}, NormShape{30, 19, 40, layout}, NormShape{3, 9, 700, layout}}) {
      for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kRelu}) {
        const NormCase k(shape, {kind}, false, 55, 2e5);
        const Oracle oracle(k);
        for_each_target([&] {
          const NormOutcome o = run(k);
          EXPECT_LE(distance(o.dx, oracle.gradient.dx), 6e-7 * norm_of(oracle.gradient.dx)) << describe(shape);
          Values dgamma(oracle.gradient.dgamma.size()), dbeta(dgamma.size());
          affine_gradient(o.sums, o.scale.data(), dgamma.data(), dbeta.data());
          EXPECT_LE(distance(dgamma, oracle.gradient.dgamma), 6e-7 * norm_of(dgamma)) << describe(shape);
          EXPECT_LE(distance(dbeta, oracle.gradient.dbeta), 6e-7 * norm_of(dbeta)) << describe(shape);
        });
      }
    }
  }
}

TEST(Norm, takes_frozen_statistics_as_constants_in_the_gradient) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const bool with_residual : {false, true}) {
        NormCase k({9, 18, 11, layout}, {ActivationKind::kRelu}, with_residual, 51);
        k.batch_statistics = false;
        expect_close_to_oracle(k, run(k, {.at_once = with_residual}));
      }
    }
  });
}

// Inference: statistics that are not the data's own.
TEST(Norm, normalizes_with_any_statistics) {
  for (const NormLayout layout : kLayouts) {
    for (const ActivationKind kind : kKinds) {
      const NormCase k({5, 19, 33, layout}, {kind, kSlope}, kind == ActivationKind::kRelu, 57);
      std::vector<NormScale> scale(19);
      for (size_t c = 0; c < scale.size(); ++c)
        scale[c] = {0.3 * static_cast<double>(c) - 2, 0.5 + 0.1 * static_cast<double>(c)};
      Oracle oracle(k);
      oracle.z = reference::affine(k.x, logical(k.shape), scale, k.gamma.values, k.beta.values, k.residual);
      oracle.y =
          reference::normalize(k.x, logical(k.shape), scale, k.gamma.values, k.beta.values, k.activation, k.residual);
      for_each_target([&] {
        NormArray x(k.shape, k.x), residual(k.shape), y(k.shape, 5);
        if (!k.residual.empty()) residual.fill(k.residual);
        normalize(x.in(), k.shape, {scale.data(), k.gamma.get(), k.beta.get()}, k.activation,
                  k.residual.empty() ? NormInput() : residual.in(), y.out(), 2);
        NormOutcome o;
        o.y = y.values();
        SCOPED_TRACE(describe(k.shape) + " " + name_of(kind));
        expect_close_y(k, oracle, o);
      });
    }
  }
}

TEST(Norm, takes_absent_gamma_and_beta_as_one_and_zero) {
  for (const NormLayout layout : kLayouts) {
    for (const NormType type : {NormType::kF32, NormType::kF64}) {
      for (const bool no_gamma : {false, true}) {
        for (const bool no_beta : {false, true}) {
          NormCase k({6, 5, 4, layout, type}, {ActivationKind::kTanh}, false, 61);
          NormCase bare = k;
          if (no_gamma) k.gamma.set(Values(5, 1), type == NormType::kF64);
          if (no_beta) k.beta.set(Values(5, 0), type == NormType::kF64);
          if (no_gamma) bare.gamma.set({}, false);
          if (no_beta) bare.beta.set({}, false);
          EXPECT_EQ(difference(run(k), run(bare)), "") << describe(k.shape);
          EXPECT_EQ(difference(run(k), run(bare, {.at_once = true})), "") << describe(k.shape);
        }
      }
    }
  }
}

// Parameters are read in double: a float is the same number there.
TEST(Norm, takes_gamma_and_beta_as_floats_or_doubles_for_every_type) {
  for (const NormType type : kTypes) {
    NormCase k({6, 21, 4, kFirst, type}, {ActivationKind::kRelu}, false, 63);
    Values gamma = k.gamma.values, beta = k.beta.values;
    for (Values* values : {&gamma, &beta}) {
      for (double& v : *values) v = stored(v, NormType::kF32);
    }
    NormCase as_double = k;
    k.gamma.set(gamma, false);
    k.beta.set(beta, false);
    as_double.gamma.set(gamma, true);
    as_double.beta.set(beta, true);
    EXPECT_EQ(difference(run(k), run(as_double)), "") << name_of(type);
  }
}

}  // namespace
}  // namespace evenkeel::kernels
