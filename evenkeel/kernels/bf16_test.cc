#include "evenkeel/kernels/bf16.h"

#include <algorithm>

#include "evenkeel/kernels/activation.h"
#include "evenkeel/kernels/kernel_testing.h"

namespace evenkeel::kernels {
namespace {

float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

// Of the two neighbours in bf16 the nearer one, by distances in double; of two as near the even one.
uint16_t nearest(float x) {
  const auto below = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);  // towards zero
  const auto above = static_cast<uint16_t>(below + 1);
  const auto distance = [&](uint16_t half) {
    return std::abs(static_cast<double>(from_bits(static_cast<uint32_t>(half) << 16)) - static_cast<double>(x));
  };
  if (distance(below) == distance(above)) return below % 2 == 0 ? below : above;
  return distance(below) < distance(above) ? below : above;
}

TEST(Bf16, is_widened_exactly_and_comes_back_for_every_value) {
  std::vector<uint16_t> all(1 << 16), back(all.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<float> wide(all.size());
  widen_bf16(all.data(), static_cast<int64_t>(all.size()), wide.data());
  narrow_bf16(wide.data(), static_cast<int64_t>(all.size()), back.data());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(wide[i]), static_cast<uint32_t>(i) << 16);
    EXPECT_EQ(back[i], std::isnan(wide[i]) ? all[i] | 0x40 : all[i]);
  }
}

TEST(Bf16, is_the_nearest_value_and_the_even_one_of_two) {
  std::vector<float> x;
  for (uint32_t upper = 0; upper < 0x7f7f; upper += 7) {
    for (const uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      x.push_back(from_bits(upper << 16 | lower));
      x.push_back(-x.back());
    }
  }
  std::vector<uint16_t> y(x.size());
  narrow_bf16(x.data(), static_cast<int64_t>(x.size()), y.data());
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], nearest(x[i])) << x[i];
}

TEST(Bf16, keeps_what_is_not_finite_and_overflows_to_infinity) {
  const float infinity = std::numeric_limits<float>::infinity();
  // A NaN whose payload lies in the half that is cut off.
  const std::vector<float> x = {infinity, -infinity, from_bits(0x7f800001), from_bits(0xffffffff),
                                std::numeric_limits<float>::max()};
  for (const size_t repeat : {size_t{1}, size_t{16}}) {  // as tails, and within vectors
    std::vector<float> many, wide(x.size() * repeat);
    for (size_t i = 0; i < repeat; ++i) many.insert(many.end(), x.begin(), x.end());
    std::vector<uint16_t> y(many.size());
    narrow_bf16(many.data(), static_cast<int64_t>(many.size()), y.data());
    widen_bf16(y.data(), static_cast<int64_t>(many.size()), wide.data());
    for (size_t i = 0; i < many.size(); i += x.size()) {
      EXPECT_EQ(wide[i], infinity);
      EXPECT_EQ(wide[i + 1], -infinity);
      EXPECT_TRUE(std::isnan(wide[i + 2]));
      EXPECT_TRUE(std::isnan(wide[i + 3]));
      EXPECT_EQ(wide[i + 4], infinity);
    }
  }
}

TEST(Bf16, does_not_depend_on_where_a_range_is_cut_and_writes_nothing_behind_it) {
  std::vector<float> x(67);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) * 3;
  std::vector<uint16_t> whole(x.size());
  narrow_bf16(x.data(), static_cast<int64_t>(x.size()), whole.data());
  for (size_t count = 0; count < x.size(); ++count) {
    std::vector<uint16_t> part(x.size(), 0x1234);
    std::vector<float> wide(x.size(), -77);
    narrow_bf16(x.data(), static_cast<int64_t>(count), part.data());
    widen_bf16(whole.data(), static_cast<int64_t>(count), wide.data());
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(part[i], i < count ? whole[i] : 0x1234);
      EXPECT_EQ(wide[i], i < count ? from_bits(static_cast<uint32_t>(whole[i]) << 16) : -77);
    }
  }
}

// Numbers of both signs as bf16.
std::vector<uint16_t> numbers(size_t count, float phase) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = std::sin(phase + 1.7f * static_cast<float>(i)) * 3;
  std::vector<uint16_t> y(count);
  narrow_bf16(x.data(), static_cast<int64_t>(count), y.data());
  return y;
}
std::vector<float> widened(const std::vector<uint16_t>& x) {
  std::vector<float> y(x.size());
  widen_bf16(x.data(), static_cast<int64_t>(x.size()), y.data());
  return y;
}

TEST(Bf16, is_added_in_fp32_and_rounded_once) {
  for_each_target([] {
    for (size_t count = 1; count < 70; ++count) {
      std::vector<uint16_t> a = numbers(count, 0), b = numbers(count, 1), out(count + 1, 0x1234);
      add_bf16(a.data(), b.data(), static_cast<int64_t>(count), out.data());
      const std::vector<float> wide_a = widened(a), wide_b = widened(b);
      for (size_t i = 0; i < count; ++i) ASSERT_EQ(out[i], nearest(wide_a[i] + wide_b[i])) << i << " of " << count;
      ASSERT_EQ(out[count], 0x1234);
      add_bf16(a.data(), b.data(), static_cast<int64_t>(count), a.data());
      ASSERT_TRUE(std::equal(a.begin(), a.end(), out.begin())) << "in place";
    }
  });
}

// Bit i of the mask opens the gate; a leaky one lets a part through when it is shut.
TEST(Bf16, gradients_by_a_mask_are_those_of_fp32_rounded_once) {
  constexpr float kSlope = 0.3f;
  const std::vector<uint8_t> mask = {0x5a, 0xf0, 0x01, 0xff, 0x00, 0x93, 0x6c, 0x2e, 0xd1};
  for_each_target([&] {
    for (size_t count = 1; count < 70; ++count) {
      const std::vector<uint16_t> dy = numbers(count, 2), other = numbers(count, 3);
      const std::vector<float> wide_dy = widened(dy), wide_other = widened(other);
      for (const Activation& activation : {Activation{ActivationKind::kRelu}, {ActivationKind::kLeakyRelu, kSlope}}) {
        for (const bool adds : {false, true}) {
          std::vector<uint16_t> dx(count + 1, 0x1234);
          std::vector<float> wide_dx(count + 1, 77);
          activate_gradient_by_mask_bf16(dy.data(), mask.data(), static_cast<int64_t>(count), activation,
                                         adds ? other.data() : nullptr, dx.data());
          activate_gradient_by_mask(wide_dy.data(), mask.data(), static_cast<int64_t>(count), activation,
                                    adds ? wide_other.data() : nullptr, wide_dx.data());
          for (size_t i = 0; i < count; ++i) {
            const bool open = (mask[i / 8] >> (i % 8) & 1) != 0;
            const float gate = open ? 1.0f : activation.kind == ActivationKind::kRelu ? 0.0f : kSlope;
            float expected = wide_dy[i] * gate;
            if (adds) expected += wide_other[i];
            ASSERT_EQ(wide_dx[i], expected) << i << " of " << count;
            ASSERT_EQ(dx[i], nearest(expected)) << i << " of " << count;
          }
          ASSERT_EQ(dx[count], 0x1234);
          ASSERT_EQ(wide_dx[count], 77);
        }
      }
    }
  });
}

TEST(Bf16, finds_the_value_that_is_not_finite) {
  std::vector<uint16_t> x(70, 0x3f80);
  EXPECT_TRUE(all_finite_bf16(x.data(), 70));
  for (const int bad : {0x7f80, 0xff80, 0x7fc0}) {
    x[33] = static_cast<uint16_t>(bad);
    EXPECT_FALSE(all_finite_bf16(x.data(), 70));
    EXPECT_TRUE(all_finite_bf16(x.data(), 33));
  }
}

}  // namespace
}  // namespace evenkeel::kernels
