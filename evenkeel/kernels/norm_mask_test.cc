// The gate of relu and leaky_relu: rebuilt from x, or kept as a bit mask where a residual was added.
#include <gtest/gtest.h>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

constexpr ActivationKind kGates[] = {ActivationKind::kRelu, ActivationKind::kLeakyRelu};

// Rows and planes about whole bytes, vectors and windows.
const NormShape kMaskShapes[] = {{3, 1, 1, kFirst},  {9, 7, 1, kFirst},    {5, 130, 1, kFirst}, {3, 8, 7, kFirst},
                                 {9, 19, 8, kFirst}, {2, 3, 9, kFirst},    {3, 16, 63, kFirst}, {2, 33, 64, kFirst},
                                 {9, 5, 65, kFirst}, {1, 24, 100, kFirst}, {2, 3, 1023, kFirst}};

template <class Function>
void for_each_mask_case(const Function& f) {
  uint64_t seed = 600;
  for (const NormLayout layout : kLayouts) {
    for (const NormShape& shape : kMaskShapes) {
      for (const NormType type : kTypes) {
        for (const ActivationKind kind : kGates) {
          NormShape typed = shape;
          typed.layout = layout;
          typed.type = type;
          ++seed;
          f(NormCase(typed, {kind, kSlope}, true, seed), seed);
        }
      }
    }
  }
}

// y > 0 is z > 0 but for a z so small that rounding it to the storage makes it 0, which this data has not.
TEST(NormMask, has_a_bit_where_z_is_positive) {
  for_each_target([] {
    for_each_mask_case([](const NormCase& k, uint64_t seed) {
      const NormOutcome o = run(k, {.misalignment = seed % 16, .at_once = seed % 3 == 0, .with_mask = true});
      size_t set = 0;
      ASSERT_EQ(o.mask.size(), o.y.size());
      for (size_t i = 0; i < o.y.size(); ++i) {
        ASSERT_EQ(o.mask[i] != 0, o.y[i] > 0) << describe(k.shape) << " at " << i;
        set += o.mask[i];
      }
      if (o.y.size() > 50) {
        EXPECT_GT(set, 0u);
        EXPECT_LT(set, o.y.size());
      }
    });
  });
}

TEST(NormMask, changes_no_bit_of_y_and_gives_the_gradient_of_the_residual_to_the_bit) {
  for_each_target([] {
    for_each_mask_case([](const NormCase& k, uint64_t seed) {
      const NormWay without{.misalignment = seed % 16, .at_once = seed % 2 == 0};
      NormWay with = without;
      with.with_mask = true;
      with.threads = 2;
      EXPECT_EQ(difference(run(k, without), run(k, with)), "")
          << describe(k.shape) << " " << name_of(k.activation.kind);
    });
  });
}

// Bits behind the end of an example too: what lay there before does not stay.
TEST(NormMask, is_assigned_whole) {
  for_each_target([] {
    for_each_mask_case([](const NormCase& k, uint64_t) {
      NormArray x(k.shape, k.x), residual(k.shape, k.residual), y(k.shape);
      const std::vector<NormScale> scale(static_cast<size_t>(k.shape.c));
      ASSERT_EQ(norm_mask_bytes(k.shape), mask_bytes_of(k.shape)) << describe(k.shape);
      std::vector<std::vector<uint8_t>> masks;
      for (const uint8_t before : {uint8_t{0}, uint8_t{0xff}, uint8_t{0x5a}}) {
        std::vector<uint8_t> mask(norm_mask_bytes(k.shape), before);
        normalize(x.in(), k.shape, {scale.data()}, k.activation, residual.in(), y.out(), 1, mask.data());
        masks.push_back(mask);
      }
      EXPECT_EQ(masks[0], masks[1]) << describe(k.shape);
      EXPECT_EQ(masks[0], masks[2]) << describe(k.shape);
    });
  });
}

// Worked out by hand: two examples, three channels, ten positions, z = x + r with mean 0 and rstd 1.
TEST(NormMask, lies_as_documented) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      const NormShape shape{2, 3, 10, layout};
      // Positive are: example 0, channel 1, position 9; example 1, channel 2, positions 0 and 3.
      Values x(size_of(shape), -1.0);
      x[logical_index(shape, 0, 1, 9)] = x[logical_index(shape, 1, 2, 0)] = x[logical_index(shape, 1, 2, 3)] = 2;
      NormArray from(shape, x), residual(shape, Values(x.size(), 0.5)), y(shape);
      const std::vector<NormScale> scale(3);
      std::vector<uint8_t> mask(norm_mask_bytes(shape), 0xff);
      normalize(from.in(), shape, {scale.data()}, {ActivationKind::kRelu}, residual.in(), y.out(), 1, mask.data());
      std::vector<uint8_t> expected;
      if (layout == kFirst) {  // 30 bits, 4 bytes: elements 1 * 10 + 9, 2 * 10 + 0 and 2 * 10 + 3
        expected.assign(2 * 4, 0);
        expected[2] = 1 << 3;
        expected[4 + 2] = 1 << 4 | 1 << 7;
      } else if (layout == NormLayout::kChannelsLast) {  // elements 9 * 3 + 1, 0 * 3 + 2 and 3 * 3 + 2
        expected.assign(2 * 4, 0);
        expected[3] = 1 << 4;
        expected[4 + 0] = 1 << 2;
        expected[4 + 1] = 1 << 3;
      } else {  // 8 or 16 lanes are one byte or two
        const size_t bytes = layout == NormLayout::kBlocked16 ? 2 : 1;
        expected.assign(2 * 10 * bytes, 0);
        expected[9 * bytes] = 1 << 1;
        expected[(10 + 0) * bytes] = expected[(10 + 3) * bytes] = 1 << 2;
      }
      EXPECT_EQ(mask, expected) << name_of(layout);
    }
  });
}

// z = x + r with mean 0 and rstd 1, exactly on both sides of 0 and at 0: 0 is not positive, the least positive z is.
TEST(NormMask, counts_zero_as_not_positive) {
  for_each_target([] {
    for (const NormType type : kTypes) {
      for (const NormLayout layout : kLayouts) {
        for (const ActivationKind kind : kGates) {
          NormCase k({3, 19, 13, layout, type}, {kind, kSlope}, true, 701);
          k.batch_statistics = false;
          for (size_t i = 0; i < k.x.size(); ++i) {
            k.x[i] = std::nearbyint(k.x[i] * 4) / 4;
            // One step of the coarsest type to either side, none, and far away.
            const double least = std::max(0x1p-8, spacing_of(k.x[i], kBf16Format));
            const double step[] = {0, least, -least, 0.0, 2, -2};
            k.residual[i] = -k.x[i] + step[i % 6];
            ASSERT_EQ(stored(k.residual[i], type), k.residual[i]);
            k.dy[i] = 1;
          }
          NormArray x(k.shape, k.x), dy(k.shape, k.dy), residual(k.shape, k.residual), y(k.shape);
          const std::vector<NormScale> scale(19);
          GuardedBytes mask(norm_mask_bytes(k.shape));
          uint8_t* const bits = reinterpret_cast<uint8_t*>(mask.data());
          normalize(x.in(), k.shape, {scale.data()}, k.activation, residual.in(), y.out(), 1, bits);
          const std::vector<uint8_t> open = mask_bits(k.shape, mask.data());
          const Values out = y.values();
          for (const NormGate& gate : {NormGate(residual.in()), NormGate::from_mask(bits)}) {
            NormArray dx(k.shape), dresidual(k.shape);
            gradient_input(x.in(), dy.in(), k.shape, {scale.data()}, k.activation, gate, {}, false, dx.out(),
                           dresidual.out(), 1);
            const Values to_x = dx.values(), to_residual = dresidual.values();
            const double closed = kind == ActivationKind::kRelu ? 0 : stored(static_cast<double>(kSlope), type);
            for (size_t i = 0; i < open.size(); ++i) {
              const double z = k.x[i] + k.residual[i];
              ASSERT_EQ(open[i] != 0, z > 0) << describe(k.shape) << " z " << z;
              ASSERT_EQ(out[i] > 0, z > 0) << describe(k.shape) << " z " << z;
              ASSERT_EQ(out[i] == 0, z == 0 || (z < 0 && kind == ActivationKind::kRelu)) << describe(k.shape);
              ASSERT_EQ(to_x[i], z > 0 ? 1 : closed) << describe(k.shape) << " z " << z;
              ASSERT_EQ(to_residual[i], to_x[i]) << describe(k.shape) << " z " << z;
            }
          }
        }
      }
    }
  });
}

TEST(NormMask, has_no_bit_for_nan) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      NormCase k({3, 19, 13, layout}, {ActivationKind::kRelu}, true, 711);
      for (size_t i = 0; i < k.residual.size(); i += 7) k.residual[i] = std::numeric_limits<double>::quiet_NaN();
      const NormOutcome o = run(k, {.with_mask = true});
      for (size_t i = 0; i < k.residual.size(); i += 7) {
        ASSERT_TRUE(std::isnan(o.y[i])) << describe(k.shape);
        ASSERT_EQ(o.mask[i], 0) << describe(k.shape);
      }
    }
  });
}

// Without a mask and without a residual: the gate that the gradient rebuilds is the forward pass's own.
TEST(Norm, opens_the_gate_of_relu_exactly_where_y_is_positive) {
  for_each_target([] {
    for (const NormType type : {NormType::kF32, NormType::kF64}) {
      for (const bool with_residual : {false, true}) {
        for (const NormLayout layout : kLayouts) {
          NormCase k({16, 5, 100, layout, type}, {ActivationKind::kRelu}, with_residual, 31);
          // A grid around the mean, so that many z are within a few ulp of zero, and exact zeros.
          const double ulp = type == NormType::kF32 ? 0x1p-23 : 0x1p-52;
          for (size_t i = 0; i < k.x.size(); ++i) {
            k.x[i] = stored((i % 2 ? 1 + ulp : 1 - ulp / 2) + static_cast<double>(i % 3) * ulp / 2, type);
          }
          k.beta.set(Values(5, 0), type == NormType::kF64);
          k.gamma.set(Values(5, 1), type == NormType::kF64);
          if (with_residual) k.residual.assign(k.residual.size(), 0);
          k.dy.assign(k.dy.size(), 1);
          k.batch_statistics = false;
          for (const bool at_once : {false, true}) {
            const NormOutcome o = run(k, {.at_once = at_once});
            size_t open = 0;
            for (size_t i = 0; i < o.y.size(); ++i) {
              ASSERT_EQ(o.dx[i] != 0, o.y[i] > 0) << describe(k.shape) << " at " << i;
              open += o.y[i] > 0;
            }
            EXPECT_GT(open, 0u);
            EXPECT_LT(open, o.y.size());
          }
        }
      }
    }
  });
}

// z of a few ulp of beta, where another order of the same operations rounds to the other side of 0.
TEST(Norm, opens_the_gate_where_y_is_positive_about_the_zero_of_z) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const NormShape& shape : {NormShape{4, 21, 67, layout}, NormShape{40, 19, 1, layout}}) {
        for (const ActivationKind kind : kGates) {
          NormCase k(shape, {kind, kSlope}, false, 721);
          std::vector<NormScale> scale(static_cast<size_t>(shape.c));
          for (size_t c = 0; c < scale.size(); ++c)
            scale[c] = {0.1 + 0.37 * static_cast<double>(c), 1 / (0.7 + 0.1 * static_cast<double>(c))};
          for (size_t i = 0; i < k.x.size(); ++i) {
            const size_t c = i / static_cast<size_t>(shape.s) % scale.size();
            const double zero = scale[c].mean - k.beta.values[c] / (k.gamma.values[c] * scale[c].rstd);
            const double ulp = ulp_of(zero);
            k.x[i] = stored(zero + (static_cast<double>(i % 7) - 3) * ulp, NormType::kF32);
            k.dy[i] = 1;
          }
          NormArray x(shape, k.x), dy(shape, k.dy), y(shape), dx(shape);
          const NormAffine affine{scale.data(), k.gamma.get(), k.beta.get()};
          normalize(x.in(), shape, affine, k.activation, nullptr, y.out(), 1);
          gradient_input(x.in(), dy.in(), shape, affine, k.activation, nullptr, {}, false, dx.out(), nullptr, 1);
          std::vector<GradientSums> sums(scale.size());
          NormWorkspace workspace(shape);
          gradient_sums(x.in(), dy.in(), shape, affine, k.activation, nullptr, workspace.get(), 1, sums);
          const Values out = y.values(), to_x = dx.values();
          std::vector<double> open(scale.size()), values(scale.size());
          for (size_t i = 0; i < out.size(); ++i) {
            const size_t c = i / static_cast<size_t>(shape.s) % scale.size();
            const double full = std::abs(k.gamma.values[c] * scale[c].rstd);
            const bool is_open = std::abs(to_x[i]) > full * 0.6;  // 1 or a slope of 0.2 or 0
            ASSERT_EQ(is_open, out[i] > 0) << describe(shape) << " at " << i;
            open[c] += is_open;
            values[c] += 1;
          }
          for (size_t c = 0; c < scale.size(); ++c) {
            const double closed = kind == ActivationKind::kRelu ? 0 : static_cast<double>(kSlope);
            ASSERT_NEAR(sums[c].dy, open[c] + closed * (values[c] - open[c]), 1e-6 * values[c]) << describe(shape);
            EXPECT_GT(open[c], 0);
            EXPECT_LT(open[c], values[c]);
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace evenkeel::kernels
