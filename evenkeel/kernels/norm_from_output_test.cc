// The overwriting form: the gradient from y, where y lies over x.
#include <gtest/gtest.h>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

// Forward in place, then backward from y with dx over dy, over y, or elsewhere.
enum class Place { kElsewhere, kOverDy, kOverY };

NormOutcome run_from_output(const NormCase& k, const NormWay& way, Place place) {
  NormArray x(k.shape, k.x, way.misalignment, way.gap), dy(k.shape, k.dy, way.misalignment * 3 % 16, way.gap * 2);
  NormArray elsewhere(k.shape, way.misalignment * 5 % 16, way.gap * 3);
  NormWorkspace workspace(k.shape);
  NormOutcome o;
  o.moments.resize(static_cast<size_t>(k.shape.c));
  o.scale.resize(o.moments.size());
  o.sums.assign(o.moments.size(), {-1, -1});
  const NormOptions options(way.threads, way.stores);
  forward_training(x.in(), k.shape, kEps, k.gamma.get(), k.beta.get(), k.activation, nullptr, workspace.get(), options,
                   o.moments, o.scale, x.out());
  o.y = x.values();
  const NormAffine affine{o.scale.data(), k.gamma.get(), k.beta.get()};
  EXPECT_EQ(first_channel_not_invertible(affine, k.shape.c), -1);
  NormArray& dx = place == Place::kElsewhere ? elsewhere : place == Place::kOverDy ? dy : x;
  backward_training_from_output(x.in(), dy.in(), k.shape, affine, k.activation, workspace.get(), options, o.sums,
                                dx.out());
  o.dx = dx.values();
  EXPECT_TRUE(dx.padding_is_zero());
  EXPECT_TRUE(x.intact() && dy.intact() && elsewhere.intact() && workspace.intact());
  EXPECT_TRUE(place == Place::kOverDy || dy.untouched());
  return o;
}

NormCase invertible_case(const NormShape& shape, ActivationKind kind, uint64_t seed) {
  NormCase k(shape, {kind, kSlope}, false, seed);
  // |gamma| from 0.5 to 1.5 of either sign, |beta| up to 3 or so.
  Values gamma(k.gamma.values.size());
  for (size_t c = 0; c < gamma.size(); ++c) {
    const double size = 0.5 + static_cast<double>(c * 7 % 11) / 11;
    gamma[c] = stored(c % 2 ? size : -size, NormType::kF32);
  }
  k.gamma.set(gamma, shape.type == NormType::kF64);
  return k;
}

// dx is that of backward_training() but for the roundings of y. One rounding of y, by u |y|, moves xhat by u |y| / |gamma|
// <= u (|xhat| + |beta / gamma|); where leaky_relu is undone, two more roundings of the same size. xhat enters dx as
// gamma * rstd * xhat * (rstd * sum_gx / m), as a term of the sum and by the sum itself: by twice that error times |gamma *
// rstd| * max |g|. Channel by channel in the norm over its values: 3 roundings, twice, and u = 2^-24 is doubled for those
// of subtracting beta and of scaling.
void expect_close_to_backward(const NormCase& k, const NormOutcome& from_y) {
  const Oracle oracle(k);
  const double unit = k.shape.type == NormType::kF64 ? 0x1p-53 : 0x1p-24;
  const size_t s = static_cast<size_t>(k.shape.s), channels = static_cast<size_t>(k.shape.c);
  const double m = static_cast<double>(k.shape.n * k.shape.s);
  Values error(channels), size(channels), of_g(channels);
  for (size_t i = 0; i < k.x.size(); ++i) {
    const size_t c = i / s % channels;
    error[c] += std::pow(from_y.dx[i] - oracle.gradient.dx[i], 2);
    size[c] += std::pow(oracle.gradient.dx[i], 2);
    of_g[c] += std::pow(oracle.gradient.dresidual[i], 2);
  }
  for (size_t c = 0; c < channels; ++c) {
    const double gamma = k.gamma.values[c];
    const double of_y = 12 * unit * (1 + std::abs(k.beta.values[c] / gamma)) * std::abs(gamma) * oracle.scale[c].rstd;
    const double of_arithmetic = bounds_of(k.shape.type, false).gradient;
    ASSERT_LE(std::sqrt(error[c]), of_arithmetic * std::sqrt(size[c]) + of_y * std::sqrt(of_g[c]))
        << describe(k.shape) << " channel " << c;
    ASSERT_NEAR(from_y.sums[c].dy, oracle.gradient.sums[c].dy, of_arithmetic * 3 * (std::sqrt(m) + 2))
        << "channel " << c;
    // Each term by |g| times the error of x - mean, and these do not all have the same sign; sqrt(m) |g| in the norm.
    const double deviation = 12 * unit * (1 + std::abs(k.beta.values[c] / gamma)) / oracle.scale[c].rstd;
    ASSERT_NEAR(from_y.sums[c].dy_xmu, oracle.gradient.sums[c].dy_xmu,
                (of_arithmetic * 3 / oracle.scale[c].rstd + deviation) * (std::sqrt(m) + 2) * 2)
        << "channel " << c;
  }
}

TEST(NormFromOutput, gives_the_gradient_but_for_the_roundings_of_y) {
  for_each_target([] {
    uint64_t seed = 800;
    for (const NormType type : {NormType::kF32, NormType::kF64}) {
      for (const NormLayout layout : kLayouts) {
        for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kLeakyRelu}) {
          for (const NormShape& shape : {NormShape{20, 19, 1, layout, type}, NormShape{5, 21, 7, layout, type},
                                         NormShape{9, 5, 64, layout, type}, NormShape{3, 9, 130, layout, type},
                                         NormShape{2, 3, 2100, layout, type}}) {
            const NormCase k = invertible_case(shape, kind, ++seed);
            const NormWay way{.misalignment = seed % 16, .gap = static_cast<int64_t>(seed % 3)};
            SCOPED_TRACE(name_of(kind));
            expect_close_to_backward(k, run_from_output(k, way, Place::kElsewhere));
            if (testing::Test::HasFailure()) return;
          }
        }
      }
    }
  });
}

// Where y is exact, there are no roundings to undo: the sums are those of backward_training() to the bit of their own.
TEST(NormFromOutput, gives_exact_sums_of_exact_data) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kLeakyRelu}) {
        const NormShape shape{16, 19, 9, layout};
        NormCase k(shape, {kind, 0.25f}, false, 831);
        const std::vector<NormScale> scale(19, NormScale{2, 0.5});
        for (size_t i = 0; i < k.x.size(); ++i) {
          k.x[i] = std::nearbyint(k.x[i]);
          k.dy[i] = std::nearbyint(4 * k.dy[i]);
        }
        k.gamma.set(Values(19, 2), false);
        k.beta.set(Values(19, -1), false);
        const NormAffine affine{scale.data(), k.gamma.get(), k.beta.get()};
        NormArray x(shape, k.x), dy(shape, k.dy), y(shape), dx(shape);
        NormWorkspace workspace(shape);
        std::vector<GradientSums> from_x(19), from_y(19);
        normalize(x.in(), shape, affine, k.activation, nullptr, y.out(), 1);
        gradient_sums(x.in(), dy.in(), shape, affine, k.activation, nullptr, workspace.get(), 1, from_x);
        backward_training_from_output(y.in(), dy.in(), shape, affine, k.activation, workspace.get(), 1, from_y,
                                      dx.out());
        for (size_t c = 0; c < 19; ++c) {
          ASSERT_EQ(from_y[c].dy, from_x[c].dy) << name_of(layout);
          ASSERT_EQ(from_y[c].dy_xmu, from_x[c].dy_xmu) << name_of(layout);
        }
      }
    }
  });
}

TEST(NormFromOutput, gives_the_same_bits_for_every_place_layout_and_number_of_threads) {
  for_each_fast_target([] {
    for (const NormType type : kTypes) {
      for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kLeakyRelu}) {
        for (const NormShape& shape : {NormShape{33, 19, 1, kFirst, type}, NormShape{9, 33, 49, kFirst, type},
                                       NormShape{17, 21, 100, kFirst, type}, NormShape{3, 16, 1023, kFirst, type}}) {
          const NormCase k = invertible_case(shape, kind, 841);
          const NormOutcome plain = run_from_output(k, {}, Place::kElsewhere);
          for (const NormLayout layout : kLayouts) {
            for (const Place place : {Place::kElsewhere, Place::kOverDy, Place::kOverY}) {
              for (const NormStores stores : {NormStores::kAuto, NormStores::kStreaming}) {
                const int threads = 1 + static_cast<int>(place);
                const NormWay way{
                    .threads = threads, .stores = stores, .misalignment = 5u * static_cast<size_t>(place)};
                EXPECT_EQ(difference(plain, run_from_output(k.in(layout), way, place)), "")
                    << describe(k.in(layout).shape) << " place " << static_cast<int>(place);
              }
            }
          }
        }
      }
    }
  });
}

// 16-bit storage keeps 8 or 11 bits of y, and the gradient is no better than these.
TEST(NormFromOutput, is_as_good_as_the_storage_for_16_bit_types) {
  for (const NormType type : {NormType::kBF16, NormType::kF16}) {
    for (const NormLayout layout : kLayouts) {
      const NormCase k = invertible_case({17, 19, 49, layout, type}, ActivationKind::kLeakyRelu, 851);
      const Oracle oracle(k);
      // |beta / gamma| is below 8 here, and the roundings of y are those of the storage.
      const double bound = 12 * bounds_of(type, false).storage;
      for_each_target([&] {
        const NormOutcome o = run_from_output(k, {}, Place::kElsewhere);
        EXPECT_LE(distance(o.dx, oracle.gradient.dx), bound * norm_of(oracle.gradient.dx)) << describe(k.shape);
      });
    }
  }
}

TEST(NormFromOutput, names_the_first_channel_that_cannot_be_inverted) {
  const std::vector<NormScale> scale(5);
  const auto first = [&](const std::vector<float>& gamma, const std::vector<float>& beta) {
    return first_channel_not_invertible({scale.data(), gamma.data(), beta.data()}, 5);
  };
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float limit = 0x1p-10f;
  EXPECT_EQ(first({1, -1, 2, 0.5f, 3}, {0, 1, -1, 100, 3}), -1);
  EXPECT_EQ(first({1, 1, 0, 1, 0}, {0, 0, 0, 0, 0}), 2);
  EXPECT_EQ(first({1, 1, 1, -0.0f, 1}, {0, 0, 0, 0, 0}), 3);
  EXPECT_EQ(first({inf, 1, 1, 1, 1}, {0, 0, 0, 0, 0}), 0);
  EXPECT_EQ(first({1, -inf, 1, 1, 1}, {0, 0, 0, 0, 0}), 1);
  EXPECT_EQ(first({1, 1, 1, 1, nan}, {0, 0, 0, 0, 0}), 4);
  EXPECT_EQ(first({1, limit, -limit, 1, 1}, {1, 1, 1, -1, 1}), -1);
  EXPECT_EQ(first({1, limit, std::nextafter(limit, 0.0f), 1, 1}, {1, 1, 1, 1, 1}), 2);
  EXPECT_EQ(first({1, limit, -std::nextafter(limit, 0.0f), 1, 1}, {1, -1, -1, 1, 1}), 2);
  EXPECT_EQ(first({1e-30f, 1e30f, 1, 1, 1}, {0, 1e30f, 0, 0, 0}), -1);
}

TEST(NormFromOutput, takes_absent_parameters_as_one_and_zero_when_it_asks_for_inverses) {
  const std::vector<NormScale> scale(3);
  const std::vector<float> small = {1024, -1024, 0}, large = {0, 1024.5f, 0}, tiny = {1e-20f, -1e-20f, 1},
                           zero = {1, 0, 0};
  const std::vector<double> large_f64 = {0, 0, -1025};
  EXPECT_EQ(first_channel_not_invertible({scale.data(), nullptr, nullptr}, 3), -1);
  EXPECT_EQ(first_channel_not_invertible({scale.data(), nullptr, small.data()}, 3), -1);
  EXPECT_EQ(first_channel_not_invertible({scale.data(), nullptr, large.data()}, 3), 1);
  EXPECT_EQ(first_channel_not_invertible({scale.data(), nullptr, large_f64.data()}, 3), 2);
  EXPECT_EQ(first_channel_not_invertible({scale.data(), tiny.data(), nullptr}, 3), -1);
  EXPECT_EQ(first_channel_not_invertible({scale.data(), zero.data(), nullptr}, 3), 1);
}

}  // namespace
}  // namespace evenkeel::kernels
