#include "evenkeel/core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace evenkeel {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers published with the reference implementation (Random123, kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, gives_the_published_known_answers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

std::vector<uint32_t> first(RandomStream stream, size_t count = 8) {
  std::vector<uint32_t> words(count);
  for (uint32_t& w : words) w = stream.next_u32();
  return words;
}

TEST(RandomStream, is_a_function_of_its_address_and_of_every_part_of_it) {
  EXPECT_EQ(first({7, RandomUse::kDropout, 3, 9}), first({7, RandomUse::kDropout, 3, 9}));
  const std::vector<std::vector<uint32_t>> streams = {
      first({7, RandomUse::kDropout, 3, 9}),          first({8, RandomUse::kDropout, 3, 9}),
      first({7ull << 32, RandomUse::kDropout, 3, 9}), first({7, RandomUse::kShuffle, 3, 9}),
      first({7, RandomUse::kDropout, 4, 9}),          first({7, RandomUse::kDropout, 3ull << 32, 9}),
      first({7, RandomUse::kDropout, 3, 10}),         first({7, RandomUse::kDropout, 3, 9ull << 32}),
      first({7, RandomUse::kDropout, 9, 3})};
  EXPECT_EQ((std::set<std::vector<uint32_t>>(streams.begin(), streams.end()).size()), streams.size());
}

TEST(RandomStream, uniform_numbers_lie_in_the_unit_interval_with_the_mean_of_it) {
  RandomStream random(1, RandomUse::kSplit);
  double sum = 0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const float u = random.next_uniform();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += static_cast<double>(u);
  }
  EXPECT_NEAR(sum / kCount, 0.5, 5 * 0.2887 / std::sqrt(kCount));  // five standard deviations
}

TEST(RandomStream, next_below_stays_below_and_meets_every_value_equally_often) {
  RandomStream random(2, RandomUse::kShuffle);
  constexpr int kCount = 70000;
  std::array<int, 7> seen{};
  for (int i = 0; i < kCount; ++i) ++seen.at(random.next_below(7));
  for (const int s : seen) EXPECT_NEAR(s, kCount / 7, 5 * std::sqrt(kCount / 7.0));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(random.next_below(1), 0u);
  const uint64_t large = (uint64_t{1} << 63) + 12345;
  for (int i = 0; i < 100; ++i) EXPECT_LT(random.next_below(large), large);
}

TEST(RandomStream, normal_numbers_have_the_moments_of_the_normal_distribution) {
  RandomStream random(3, RandomUse::kInitialize);
  constexpr int kCount = 200000;
  double sum = 0, square = 0, fourth = 0;
  for (int i = 0; i < kCount; ++i) {
    const double v = random.next_normal();
    ASSERT_TRUE(std::isfinite(v));
    sum += v;
    square += v * v;
    fourth += v * v * v * v;
  }
  EXPECT_NEAR(sum / kCount, 0, 5 / std::sqrt(kCount));
  EXPECT_NEAR(square / kCount, 1, 5 * std::sqrt(2.0 / kCount));
  EXPECT_NEAR(fourth / kCount, 3, 5 * std::sqrt(96.0 / kCount));
}

}  // namespace
}  // namespace evenkeel
