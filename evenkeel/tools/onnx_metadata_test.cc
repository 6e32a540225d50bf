#include "evenkeel/tools/onnx_metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/core/error.h"

namespace evenkeel::tools {
namespace {

using testing::ElementsAre;
using testing::Pair;

TEST(OnnxMetadata, the_meaning_of_the_input_comes_back_to_the_bit) {
  for (const InputUnit unit : {InputUnit::kFeatures, InputUnit::kUnitPixels, InputUnit::kBytePixels}) {
    onnx::Model model;
    state_input(model, {.unit = unit});
    ASSERT_TRUE(input_meaning(model));
    EXPECT_EQ(input_meaning(model)->unit, unit);
    EXPECT_TRUE(input_meaning(model)->left_to_caller.mean.empty());
    state_input(model, {.unit = unit, .left_to_caller = {{0.1 + 0.2, -1e-300, 3}, {1.0 / 3, 1, 255}}});
    ASSERT_TRUE(input_meaning(model));
    EXPECT_EQ(input_meaning(model)->unit, unit);
    EXPECT_THAT(input_meaning(model)->left_to_caller.mean, ElementsAre(0.1 + 0.2, -1e-300, 3));
    EXPECT_THAT(input_meaning(model)->left_to_caller.std, ElementsAre(1.0 / 3, 1, 255));
  }
  EXPECT_EQ((InputMeaning{.unit = InputUnit::kBytePixels}.range()), (data::ValueRange{0, 255}));
  EXPECT_FALSE(InputMeaning{}.range());
}

TEST(OnnxMetadata, words_of_others_and_impossible_numbers_mean_nothing) {
  onnx::Model model;
  EXPECT_FALSE(input_meaning(model));
  for (const char* words :
       {"", "an image", "features, scaled", "features, then (x - mean) / std with mean 1 and std 0",
        "features, then (x - mean) / std with mean 1 and std -1", "features, then (x - mean) / std with mean 1",
        "features, then (x - mean) / std with mean 1, 2 and std 1",
        "features, then (x - mean) / std with mean  and std 1",
        "features, then (x - mean) / std with mean nan and std 1",
        "features, then (x - mean) / std with mean 1 and std inf",
        "features, then (x - mean) / std with mean 1 and std 1, "}) {
    model.metadata["evenkeel.input"] = words;
    EXPECT_FALSE(input_meaning(model)) << words;
  }
}

TEST(OnnxMetadata, statistics_are_those_of_training_until_others_are_stated) {
  onnx::Model model;
  EXPECT_EQ(stated_statistics(model).estimate, "");
  EXPECT_EQ(stated_statistics(model).variance, RunningVariance::kBiased) << "the word of ONNX";
  model.metadata[kRunningStatistics] = "ema; " + in_words(0.1, RunningVariance::kUnbiased);
  EXPECT_EQ(stated_statistics(model).estimate, "ema");
  EXPECT_EQ(stated_statistics(model).variance, RunningVariance::kUnbiased);
  state_statistics(model, {"population", RunningVariance::kBiased, {{"examples", "7"}, {"data", "/folder/x.csv"}}});
  EXPECT_EQ(stated_statistics(model).estimate, "population");
  EXPECT_EQ(stated_statistics(model).variance, RunningVariance::kBiased);
  EXPECT_THAT(stated_statistics(model).made_from, ElementsAre(Pair("data", "x.csv"), Pair("examples", "7")));
  forget_statistics(model);
  EXPECT_EQ(stated_statistics(model).estimate, "ema");
  for (const char* words : {"by hand", "[1]", "{}", R"({"estimate": 3})"}) {
    model.metadata["evenkeel.statistics"] = words;
    EXPECT_EQ(stated_statistics(model).estimate, "ema") << words;
  }
}

TEST(OnnxMetadata, text_that_is_nested_deep_is_refused) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  onnx::Model model;
  model.metadata["evenkeel.statistics"] = deep;
  EXPECT_THROW(stated_statistics(model), FormatError);
  model.metadata["evenkeel.constants"] = deep;
  EXPECT_THROW(stated_constants(model), FormatError);
}

TEST(OnnxMetadata, names_of_data_lose_their_folders) {
  EXPECT_EQ(without_folders("fashion-mnist"), "fashion-mnist");
  EXPECT_EQ(without_folders("/folder/of/pictures"), "pictures");
  EXPECT_EQ(without_folders("/folder/of/pictures/"), "pictures");
  EXPECT_EQ(without_folders("a/x.npy,/b/y.npy"), "x.npy,y.npy");
  EXPECT_EQ(without_folders(""), "");
}

}  // namespace
}  // namespace evenkeel::tools
