// The range in which the variance keeps its bound (docs/numerics.md, edge cases): squares of deviations neither overflow nor get lost.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "evenkeel/norm.h"

namespace evenkeel {
namespace {

// Numbers of mean 3 and deviation about 1, of which no two are equal.
template <class T>
std::vector<T> numbers(const NormDescriptor& d) {
  std::vector<T> x(static_cast<size_t>(d.n * d.c * d.h * d.w));
  for (size_t i = 0; i < x.size(); ++i) {
    const auto at = static_cast<double>(i);
    x[i] = static_cast<T>(3 + std::sin(at * 1.7) + 0.7 * std::cos(at * 0.37));
  }
  return x;
}

// m2 of 2^k times the numbers over 2^2k.
template <class T>
double m2_of(const NormDescriptor& d, const std::vector<T>& numbers, int k) {
  std::vector<T> x(numbers);
  for (T& value : x) value = std::ldexp(value, k);
  std::vector<NormMoments> moments(static_cast<size_t>(d.c));
  norm_moments(d, x.data(), moments, {.threads = 1});
  return std::ldexp(moments[0].m2, -2 * k);
}

// Powers of two: what they multiply keeps its digits.
template <class T>
void expect_range(NormType type, int least, int most, double bound) {
  for (NormDescriptor d : {NormDescriptor{.n = 2, .c = 1}, {.n = 1000, .c = 2}, {.n = 8, .c = 1, .h = 64, .w = 64}}) {
    for (const NormLayout layout : {NormLayout::kChannelsFirst, NormLayout::kChannelsLast}) {
      d.type = type;
      d.layout = layout;
      const std::vector<T> x = numbers<T>(d);
      const double expected = m2_of(d, x, 0);
      for (const int k : {least, least / 2, most / 2, most}) {
        EXPECT_NEAR(m2_of(d, x, k) / expected, 1, bound) << "2^" << k << ", n = " << d.n;
      }
    }
  }
}

TEST(NormRange, of_fp32_deviations_is_1e_17_to_1e17) {
  // 2^-56 is 1.4e-17, 2^56 7e16. The bound is that of docs/numerics.md for few values, twice: both sides of the quotient are rounded.
  expect_range<float>(NormType::kF32, -56, 56, 1e-6);
}

TEST(NormRange, of_fp64_deviations_is_1e_148_to_1e150) {
  // 2^-491 is 1.6e-148, 2^498 8e149. In double what is lost is below the digits of sums of some thousand values.
  expect_range<double>(NormType::kF64, -491, 498, 1e-12);
}

TEST(NormRange, beyond_it_the_variance_is_infinite_or_lost) {
  const NormDescriptor d{.n = 1000, .c = 1};
  const std::vector<float> x = numbers<float>(d);
  EXPECT_TRUE(std::isinf(m2_of(d, x, 70)));
  EXPECT_LT(m2_of(d, x, -70), 0.5 * m2_of(d, x, 0));
  // rstd is then 0, and y act(beta).
  std::vector<float> large(x), y(x.size(), 7);
  for (float& value : large) value = std::ldexp(value, 70);
  std::vector<NormScale> scale(1);
  const std::vector<float> beta = {2};
  norm_training_forward(d, {.x = large.data(), .beta = beta.data(), .y = y.data(), .scale = scale});
  EXPECT_EQ(scale[0].rstd, 0);
  for (const float value : y) ASSERT_EQ(value, 2);
}

}  // namespace
}  // namespace evenkeel
