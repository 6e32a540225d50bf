#include "evenkeel/core/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

namespace evenkeel {
namespace {

TEST(EditDistance, counts_insertions_deletions_replacements_and_swaps) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("relu", "relu"), 0);
  EXPECT_EQ(edit_distance("", "relu"), 4);
  EXPECT_EQ(edit_distance("relu", ""), 4);
  EXPECT_EQ(edit_distance("relu", "rellu"), 1);
  EXPECT_EQ(edit_distance("relu", "reu"), 1);
  EXPECT_EQ(edit_distance("relu", "selu"), 1);
  EXPECT_EQ(edit_distance("relu", "rleu"), 1);
  EXPECT_EQ(edit_distance("sigmoid", "tanh"), 7);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
}

TEST(EditDistance, is_symmetric) {
  const std::vector<std::string> words = {"momentum", "moment", "adam", "adamw", "sgd", "", "dam", "mad"};
  for (const auto& a : words) {
    for (const auto& b : words) EXPECT_EQ(edit_distance(a, b), edit_distance(b, a)) << a << " " << b;
  }
}

TEST(ClosestMatch, finds_the_likely_typo_and_nothing_far_fetched) {
  const std::vector<std::string> names = {"train", "eval", "predict", "data"};
  EXPECT_EQ(closest_match("trian", names), "train");
  EXPECT_EQ(closest_match("eva", names), "eval");
  EXPECT_EQ(closest_match("perdict", names), "predict");
  EXPECT_EQ(closest_match("quantize", names), "");
  EXPECT_EQ(closest_match("train", std::vector<std::string>{}), "");
}

TEST(ClosestMatch, prefers_the_first_of_equals) {
  EXPECT_EQ(closest_match("bat", std::vector<std::string>{"cat", "hat"}), "cat");
}

TEST(Errors, carry_their_message_and_exit_code) {
  EXPECT_EQ(UsageError("a").exit_code(), 2);
  EXPECT_EQ(FormatError("a").exit_code(), 3);
  EXPECT_EQ(IoError("a").exit_code(), 4);
  EXPECT_EQ(BackendError("a").exit_code(), 5);
  try {
    throw FormatError("file.bin: 3 bytes found, 4 expected");
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "file.bin: 3 bytes found, 4 expected");
    EXPECT_EQ(e.exit_code(), kExitFormat);
  }
}

TEST(ErrnoText, explains_the_number) {
  EXPECT_NE(errno_text(ENOENT), errno_text(ENOSPC));
  EXPECT_FALSE(errno_text(ENOENT).empty());
}

TEST(AssertionDeathTest, ends_the_program_and_names_the_expression) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";  // other tests have started threads
  EXPECT_DEATH(EK_ASSERT(1 + 1 == 3), "1 \\+ 1 == 3");
}

}  // namespace
}  // namespace evenkeel
