// The shapes that oneDNN tests its batch normalization with (benchdnn, tests/benchdnn/inputs/bnorm), on data whose moments are exact in
// any order: mean and m2 to the bit, y and dx to the bounds. Larger batches are cut to what a test can wait for.
#include <gtest/gtest.h>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

// A shape of d x h x w positions.
NormShape shape_of(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) { return {n, c, d * h * w, kFirst}; }

// Where pairs of values stand whose sum is twice the mean: neighbouring positions of an example or, without space,
// neighbouring examples. A value that is left over is the mean itself. A block of examples may be summed whole, by examples or
// by ranges of positions, from a shift that is the mean of 2^i values: all sums are exact, since all values are small multiples
// of 1/2.
Values exact_values(const NormShape& shape, uint64_t seed) {
  RandomStream random(seed, RandomUse::kInitialize);
  Values x(size_of(shape));
  const int64_t step_n = shape.s == 1 ? 2 : 1, step_s = shape.s == 1 ? 1 : 2;
  for (int64_t n = 0; n < shape.n; n += step_n) {
    for (int64_t c = 0; c < shape.c; ++c) {
      const double mean = static_cast<double>(c % 13) - 6;
      for (int64_t s = 0; s < shape.s; s += step_s) {
        const bool paired = n + step_n <= shape.n && s + step_s <= shape.s;
        const double deviation = paired ? static_cast<double>(random.next_below(17)) / 2 - 4 : 0;
        x[logical_index(shape, n, c, s)] = mean + deviation;
        if (paired) x[logical_index(shape, n + step_n - 1, c, s + step_s - 1)] = mean - deviation;
      }
    }
  }
  return x;
}

// Among millions of values some z are within a rounding of 0, where a gate may be open or closed: moves the residual there.
void keep_from_gate(NormCase& k) {
  const auto scale = reference::scale_of(reference::moments(k.x, k.shape), kEps);
  const Values z = reference::affine(k.x, k.shape, scale, k.gamma.values, k.beta.values, k.residual);
  for (size_t i = 0; i < z.size(); ++i) {
    if (std::abs(z[i]) < 1e-5) k.residual[i] = stored(k.residual[i] + 0.01, k.shape.type);
  }
}

NormCase exact_case(const NormShape& shape, ActivationKind kind, bool with_residual) {
  // Random data of this size would take longer to draw than to normalize: what is drawn is repeated.
  NormCase k({1, shape.c, 1, kFirst}, {kind, kSlope}, false, 903);
  k.shape = shape;
  k.x = exact_values(shape, 907);
  const size_t count = size_of(shape);
  const Values drawn = random_values(std::min<size_t>(count, 9973), 911, 0, 1, NormType::kF32);
  k.dy.resize(count);
  for (size_t i = 0; i < count; ++i) k.dy[i] = drawn[i % drawn.size()];
  if (with_residual) {
    k.residual.resize(count);
    for (size_t i = 0; i < count; ++i) k.residual[i] = drawn[(i * 7 + 3) % drawn.size()];
    keep_from_gate(k);
  }
  return k;
}

// gamma * rstd * g in the norm: what dx is made of.
double norm_of_terms(const NormCase& k, const Oracle& oracle) {
  double sum = 0;
  for (size_t i = 0; i < k.x.size(); ++i) {
    const size_t c = i / static_cast<size_t>(k.shape.s) % static_cast<size_t>(k.shape.c);
    sum += std::pow(k.gamma.values[c] * oracle.scale[c].rstd * oracle.gradient.dresidual[i], 2);
  }
  return std::sqrt(sum);
}

void expect_exact(const NormCase& k, const Oracle& oracle, const NormOutcome& o) {
  for (size_t c = 0; c < oracle.moments.size(); ++c) {
    ASSERT_EQ(oracle.moments[c].mean, static_cast<double>(c % 13) - 6);
    ASSERT_EQ(o.moments[c].count, oracle.moments[c].count) << "channel " << c;
    ASSERT_EQ(o.moments[c].mean, oracle.moments[c].mean) << "channel " << c;
    ASSERT_EQ(o.moments[c].m2, oracle.moments[c].m2) << "channel " << c;
  }
  ASSERT_LE(distance(o.y, oracle.y), 6e-7 * norm_of(oracle.y));
  // Two or three values per channel: dx is the small difference of large terms.
  const double size = k.shape.n * k.shape.s > 4 ? norm_of(oracle.gradient.dx) : norm_of_terms(k, oracle);
  ASSERT_LE(distance(o.dx, oracle.gradient.dx), 6e-7 * size);
  if (!k.residual.empty()) {
    ASSERT_LE(distance(o.dresidual, oracle.gradient.dresidual), 6e-7 * norm_of(oracle.gradient.dresidual));
  }
}

// Small shapes in every layout for every target; large ones in two layouts that turn, for the best target.
void expect_exact_shapes(const std::vector<NormShape>& shapes) {
  size_t turn = 0;
  for (const NormShape& shape : shapes) {
    ++turn;
    if (kSanitized && size_of(shape) > 250000) continue;
    const bool large = size_of(shape) > (kSanitized ? 20000 : 100000);
    const ActivationKind kind = kKinds[turn % 3];  // identity, relu, leaky_relu
    const NormCase k = exact_case(shape, kind, has_gate(kind) && turn % 2 == 0);
    const Oracle oracle(k);
    const auto check = [&](size_t layout) {
      const NormCase here = k.in(kLayouts[layout]);
      SCOPED_TRACE(describe(here.shape) + " " + name_of(kind));
      expect_exact(here, oracle, run(here, {.threads = 2, .at_once = layout % 2 == 0, .with_mask = layout < 2}));
    };
    if (large) {
      check(turn % 4);
      check((turn + 2 + turn / 4) % 4);
    } else {
      for_each_target([&] {
        for (size_t layout = 0; layout < 4; ++layout) check(layout);
      });
    }
    if (testing::Test::HasFailure()) return;
  }
}

TEST(NormShapes, are_exact_for_those_of_one_dimension) {
  expect_exact_shapes({shape_of(1, 16, 1, 1, 1), shape_of(1, 32, 1, 1, 30), shape_of(32, 128, 1, 1, 10),
                       shape_of(32, 27, 1, 1, 7), shape_of(9, 128, 1, 1, 1)});
}

TEST(NormShapes, are_exact_for_those_of_two_dimensions) {
  expect_exact_shapes({shape_of(1, 1, 1, 1, 1), shape_of(1, 3, 1, 1, 1), shape_of(1, 256, 1, 28, 28),
                       shape_of(1, 257, 1, 28, 28), shape_of(1, 1024, 1, 28, 17),
                       shape_of(2, 128, 1, 2, 2)});  // "catch_cancel": few values and a mean above the deviation
}

TEST(NormShapes, are_exact_for_those_of_three_dimensions) {
  expect_exact_shapes({shape_of(1, 16, 40, 40, 40), shape_of(5, 128, 12, 10, 8)});  // the second from a batch of 32
}

// Where benchdnn names no batch, it takes 2.
TEST(NormShapes, are_exact_for_those_of_continuous_integration) {
  expect_exact_shapes({shape_of(2, 23, 1, 1, 1), shape_of(2, 32, 1, 1, 32), shape_of(5, 33, 1, 1, 27),
                       shape_of(2, 256, 1, 28, 28), shape_of(4, 200, 1, 17, 16), shape_of(2, 16, 12, 12, 12),
                       shape_of(1, 19, 4, 6, 6)});
}

// All of ResNet-50, from a batch of 50.
TEST(NormShapes, are_exact_for_those_of_resnet_50) {
  expect_exact_shapes({shape_of(2, 64, 1, 112, 112), shape_of(2, 256, 1, 56, 56), shape_of(3, 64, 1, 56, 56),
                       shape_of(2, 512, 1, 28, 28), shape_of(3, 128, 1, 28, 28), shape_of(2, 1024, 1, 14, 14),
                       shape_of(4, 256, 1, 14, 14), shape_of(3, 2048, 1, 7, 7), shape_of(4, 512, 1, 7, 7)});
}

// One of each size of picture of DenseNet-121, with the fewest, the most and odd multiples of its 32 channels.
TEST(NormShapes, are_exact_for_those_of_densenet_121) {
  expect_exact_shapes({shape_of(1, 64, 1, 112, 112), shape_of(1, 96, 1, 57, 57), shape_of(1, 256, 1, 57, 57),
                       shape_of(1, 128, 1, 29, 29), shape_of(1, 352, 1, 29, 29), shape_of(1, 512, 1, 29, 29),
                       shape_of(1, 288, 1, 15, 15), shape_of(1, 672, 1, 15, 15), shape_of(1, 1024, 1, 15, 15),
                       shape_of(1, 128, 1, 8, 8), shape_of(1, 544, 1, 8, 8), shape_of(1, 1024, 1, 8, 8)});
}

// Sizes of the GoogLeNets that the others lack: 147, 73, 35 and 17 positions on a side. From a batch of 96.
TEST(NormShapes, are_exact_for_those_of_googlenet) {
  expect_exact_shapes({shape_of(1, 32, 1, 147, 147), shape_of(1, 80, 1, 73, 73), shape_of(2, 48, 1, 35, 35),
                       shape_of(2, 192, 1, 17, 17), shape_of(3, 320, 1, 8, 8), shape_of(9, 224, 1, 14, 14)});
}

// What was once wrong in oneDNN: wide shapes cut by the size of a cache (64@224 from a batch of 2, the four of 16@16 with
// 600 channels and more from one of 88), and bf16 shared by space. mb1ic512ih65536 (8 TiB) is left out.
TEST(NormShapes, are_exact_for_the_regressions) {
  expect_exact_shapes({shape_of(2, 251, 1, 28, 28), shape_of(1, 64, 1, 224, 224), shape_of(2, 64, 1, 56, 56),
                       shape_of(8, 322, 1, 16, 16), shape_of(5, 600, 1, 16, 16), shape_of(3, 980, 1, 16, 16),
                       shape_of(4, 800, 1, 16, 16), shape_of(3, 900, 1, 16, 16), shape_of(12, 4, 1, 8, 8),
                       shape_of(1, 24, 1, 14, 14)});
}

// The same sums on 16-bit data: all values are multiples of 1/2 below 16.
TEST(NormShapes, are_exact_in_16_bits_and_in_fp64) {
  for (const NormType type : {NormType::kBF16, NormType::kF16, NormType::kF64}) {
    for (NormShape shape : {shape_of(12, 4, 1, 8, 8), shape_of(1, 24, 1, 14, 14), shape_of(9, 128, 1, 1, 1),
                            shape_of(2, 19, 1, 28, 28), shape_of(3, 5, 12, 12, 12), shape_of(2, 3, 1, 57, 57)}) {
      const Values x = exact_values(shape, 919);
      const auto exact = reference::moments(x, shape);
      shape.type = type;
      for_each_target([&] {
        for (const NormLayout layout : kLayouts) {
          shape.layout = layout;
          const auto m = moments_of(x, shape, 2);
          for (size_t c = 0; c < m.size(); ++c) {
            ASSERT_EQ(m[c].mean, exact[c].mean) << describe(shape);
            ASSERT_EQ(m[c].m2, exact[c].m2) << describe(shape);
          }
        }
      });
    }
  }
}

}  // namespace
}  // namespace evenkeel::kernels
