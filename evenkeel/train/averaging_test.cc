#include "evenkeel/train/averaging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

TEST(Averaging, is_read_back_from_its_text) {
  for (const char* text : {"none", "ema=0.999", "ema=0", "swa=2"}) EXPECT_EQ(to_string(parse_averaging(text)), text);
  EXPECT_FALSE(parse_averaging("").any());
}

TEST(Averaging, refuses_other_words_and_impossible_numbers) {
  const auto refusal = [](const char* text) { return message_of<UsageError>([&] { parse_averaging(text); }); };
  EXPECT_THAT(refusal("polyak=1"), HasSubstr("unknown average of weights 'polyak=1'"));
  EXPECT_THAT(refusal("emma=0.9"), HasSubstr("did you mean 'ema'"));
  for (const char* text : {"ema", "ema=1", "ema=-0.1", "ema=x", "ema=0.9x"})
    EXPECT_THAT(refusal(text), HasSubstr("ema=0.999"));
  for (const char* text : {"swa", "swa=0", "swa=1.5"}) EXPECT_THAT(refusal(text), HasSubstr("swa=2"));
}

TEST(Averaging, takes_the_first_weights_as_they_are_and_then_shares) {
  const Averaging ema = parse_averaging("ema=0.75"), swa = parse_averaging("swa=2");
  EXPECT_EQ(average_share(ema, 1, 0), 1);
  EXPECT_EQ(average_share(ema, 1, 1), 0.25);
  EXPECT_EQ(average_share(ema, 9, 500), 0.25);
  EXPECT_EQ(average_share(swa, 1, 0), 0);
  EXPECT_EQ(average_share(swa, 2, 0), 1);
  EXPECT_EQ(average_share(swa, 2, 1), 0.5);
  EXPECT_EQ(average_share(swa, 3, 3), 0.25);
  EXPECT_EQ(average_share({}, 5, 0), 0);
}

}  // namespace
}  // namespace evenkeel
