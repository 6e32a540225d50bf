#include "evenkeel/lab/values.h"

#include <gtest/gtest.h>

#include <cmath>

namespace evenkeel::lab {
namespace {

TEST(AtLeast, a_hit_of_the_limit_survives_binary_rounding) {
  ASSERT_LT(0.3 / 0.1, 3);
  EXPECT_TRUE(at_least(0.3 / 0.1, 3));
  ASSERT_LT(0.3 - 0.2, 0.1);
  EXPECT_TRUE(at_least(0.3 - 0.2, 0.1));
  ASSERT_GT(0.1 + 0.2, 0.3);
  EXPECT_TRUE(at_most(0.1 + 0.2, 0.3));
  EXPECT_FALSE(at_least(3 - 1e-6, 3));
  EXPECT_FALSE(at_most(1e-5 + 1e-11, 1e-5));  // the slack is small beside small limits, too
  EXPECT_FALSE(at_least(std::nan(""), 3));
  EXPECT_FALSE(at_most(std::nan(""), 3));
}

}  // namespace
}  // namespace evenkeel::lab
