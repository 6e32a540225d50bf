#include "evenkeel/kernels/bf16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

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
