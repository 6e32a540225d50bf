#include "evenkeel/version.h"

#include <gtest/gtest.h>

#include <regex>
#include <string>

namespace evenkeel {
namespace {

TEST(Version, of_the_library_is_the_one_in_the_header) { EXPECT_STREQ(version(), EVENKEEL_VERSION); }

TEST(Version, has_three_numbers) {
  EXPECT_TRUE(std::regex_match(std::string(version()), std::regex("[0-9]+\\.[0-9]+\\.[0-9]+")));
}

}  // namespace
}  // namespace evenkeel
