// Weights of examples from their column to the splits and the standardization.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/data/csv.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

CsvTable parse(const std::string& text, const std::string& weight, const std::string& label = "") {
  return parse_csv(text, "t.csv", {.labelled = true, .label_column = label, .weight_column = weight});
}
template <class E>
std::string refusal(const std::string& text, const std::string& weight, const std::string& label = "") {
  try {
    parse(text, weight, label);
  } catch (const E& error) {
    return error.what();
  }
  return "not refused";
}

TEST(CsvWeights, are_a_column_of_their_own) {
  for (const char* weight : {"w", "2", "-2"}) {
    const CsvTable table = parse("a,w,kind\n1,0.5,x\n2,3,y\n", weight);
    EXPECT_THAT(table.values, ElementsAre(1, 2));
    EXPECT_THAT(table.weights, ElementsAre(0.5f, 3));
    EXPECT_THAT(table.labels, ElementsAre(0, 1));
    EXPECT_THAT(table.feature_names, ElementsAre("a"));
  }
}

TEST(CsvWeights, in_the_last_column_leave_the_label_to_the_one_before) {
  const CsvTable table = parse("a,kind,w\n1,0,2\n3,1,4\n", "w");
  EXPECT_THAT(table.values, ElementsAre(1, 3));
  EXPECT_THAT(table.labels, ElementsAre(0, 1));
  EXPECT_THAT(table.weights, ElementsAre(2, 4));
}

TEST(CsvWeights, of_0_leave_the_line_out_unread) {
  const CsvTable table = parse("a,w,kind\n1,1,x\n?,0,\ntext,-0.0,z\n2,2,y\n", "w");
  EXPECT_THAT(table.values, ElementsAre(1, 2));
  EXPECT_THAT(table.class_names, ElementsAre("x", "y"));
  EXPECT_THAT(table.lines, ElementsAre(2, 5));
  EXPECT_EQ(table.rows, 2);
}

TEST(CsvWeights, stand_beside_the_features_that_a_model_asks_for_by_name) {
  const CsvTable table = parse_csv("w,b,kind,a\n2,10,x,1\n3,20,y,2\n", "t.csv",
                                   {.labelled = true, .weight_column = "w", .feature_names = {"a", "b"}});
  EXPECT_THAT(table.values, ElementsAre(1, 10, 2, 20));
  EXPECT_THAT(table.weights, ElementsAre(2, 3));
  EXPECT_THAT(table.labels, ElementsAre(0, 1));
}

TEST(CsvWeights, that_are_none_are_refused_with_line_and_column) {
  for (const char* word : {"-1", "nan", "inf", "1e60", "x", "\"\""}) {
    EXPECT_THAT(refusal<FormatError>(std::string("a,w,kind\n1,1,x\n2,") + word + ",y\n", "w"),
                HasSubstr("line 3, column 2 ('w'): found the weight"))
        << word;
  }
  EXPECT_THAT(refusal<FormatError>("a,w,kind\n1,0,x\n2,0,y\n", "w"), HasSubstr("column 2 ('w'): all 2 weights are 0"));
  EXPECT_THAT(refusal<UsageError>("a,w,kind\n1,1,x\n", "weight"), HasSubstr("has no column 'weight'"));
  EXPECT_THAT(refusal<UsageError>("a,w,kind\n1,1,x\n", "w", "w"), HasSubstr("as the label and as the weight"));
  EXPECT_THAT(refusal<FormatError>("w,kind\n1,x\n", "w"), HasSubstr("no column beside the label and the weight"));
}

TEST(CsvWeights, without_a_weight_column_an_empty_field_makes_no_header) {
  const CsvTable table = parse_csv("1,2,a\n3,4,b\n", "t.csv", {.labelled = true});
  EXPECT_EQ(table.rows, 2);
  EXPECT_TRUE(table.weights.empty());
  EXPECT_THROW(parse_csv("1,,0\n3,4,1\n", "t.csv", {.labelled = true, .label_column = "3"}), FormatError);
}

TEST(DatasetWeights, go_with_their_examples_into_the_splits) {
  const TemporaryFolder folder;
  std::string text = "a,kind,w\n";
  for (int i = 0; i < 40; ++i)
    text += std::to_string(i) + "," + std::to_string(i % 2) + "," + std::to_string(i + 1) + "\n";
  const Splits splits = load(folder.write("t.csv", text), {.weight_column = "w", .validation_fraction = 0.25});
  int64_t seen = 0;
  for (const Dataset* split : {&splits.train, &splits.validation, &splits.test}) {
    ASSERT_EQ(split->weights.size(), static_cast<size_t>(split->count));
    for (size_t i = 0; i < split->weights.size(); ++i) {
      EXPECT_EQ(split->weights[i], split->values.values<float>()[i] + 1);
      ++seen;
    }
  }
  EXPECT_EQ(seen, 40);
}

TEST(DatasetWeights, count_in_the_standardization_as_repetitions_do) {
  Dataset weighted, repeated;
  std::vector<float> values, all;
  for (int i = 0; i < 21; ++i) {
    const float v = static_cast<float>(i * i % 17);
    values.push_back(v);
    weighted.weights.push_back(static_cast<float>(1 + i % 3));
    for (int k = 0; k < 1 + i % 3; ++k) all.push_back(v);
  }
  for (auto& [set, from] : {std::pair{&weighted, &values}, {&repeated, &all}}) {
    set->example_shape = {1};
    set->count = static_cast<int64_t>(from->size());
    set->values = Tensor(DType::kF32, {set->count, 1});
    std::copy(from->begin(), from->end(), set->values.values<float>().begin());
  }
  EXPECT_NEAR(standardization_of(weighted).mean[0], standardization_of(repeated).mean[0], 1e-13);
  EXPECT_NEAR(standardization_of(weighted).std[0], standardization_of(repeated).std[0], 1e-13);
}

}  // namespace
}  // namespace evenkeel::data
