// What rounding to 32 bits takes from a column, and that it is said.
#include "evenkeel/data/rounding.h"

#include <gmock/gmock.h>

#include "evenkeel/data/dataset.h"
#include "evenkeel/data/files_testing.h"
#include "evenkeel/data/pictures_testing.h"

namespace evenkeel::data {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string sentence(const std::vector<double>& values) {
  RoundingWatch watch(1);
  for (const double value : values) watch.see(0, value);
  return watch.sentence("f", [](size_t) { return "column 1"; });
}

TEST(Rounding, a_column_whose_rounding_error_is_a_thousandth_of_its_range_is_doubted) {
  // Floats near 1.7e9 are 128 apart: 1700000063 is rounded by 63.
  EXPECT_THAT(sentence({1700000000.0, 1700000063.0}), AllOf(HasSubstr("errors up to 63,"), HasSubstr("subtract a")));
  // 63 of 64000 is less than a thousandth, 63 of 62080 is more.
  EXPECT_EQ(sentence({1700000000.0, 1700000063.0, 1700064000.0}), "");
  EXPECT_NE(sentence({1700000000.0, 1700000063.0, 1700062080.0}), "");
  EXPECT_EQ(sentence({0.1, 0.2, 0.7}), "");
  EXPECT_EQ(sentence({1700000001.0, 1700000001.0}), "");  // constant: nothing is lost
}

TEST(Rounding, values_too_small_for_a_float_are_doubted) {
  EXPECT_THAT(sentence({1e-41, 5e-41}), AllOf(HasSubstr("too small"), HasSubstr("multiply them")));
  EXPECT_THAT(sentence({0, 1e-60}), HasSubstr("too small"));
  EXPECT_EQ(sentence({1e-41, 1e-30}), "");
}

TEST(Rounding, data_sets_carry_it_with_the_name_of_the_column) {
  const TemporaryFolder folder;
  std::string table = "a,time,kind\n", values, labels;
  for (int i = 0; i < 10; ++i) {
    table += std::to_string(i) + "," + std::to_string(1700000000 + i) + "," + (i % 2 ? "x" : "y") + "\n";
    for (const double value : {double(i), 1.7e9 + i}) values.append(reinterpret_cast<const char*>(&value), 8);
    labels += static_cast<char>(i % 2);
  }
  const std::string path = folder.write("f.csv", table);
  EXPECT_THAT(load(path).notes, ElementsAre(AllOf(HasSubstr(path + ": column 2 ('time') is rounded"),
                                                  HasSubstr("such as 1700000000 from it"))));
  EXPECT_THAT(load(folder.write("g.csv", "a,b,kind\n1,2,x\n3,4,y\n5,6,x\n")).notes, IsEmpty());
  const std::string pair =
      folder.write("x.npy", npy("<f8", "(10, 2)", values)) + "," + folder.write("y.npy", npy("|u1", "(10,)", labels));
  EXPECT_THAT(load(pair).notes, ElementsAre(HasSubstr("x.npy: column 2 is rounded")));
}

TEST(Rounding, examples_to_predict_carry_it_too) {
  const TemporaryFolder folder;
  const std::string rows = folder.write("rows.csv", "a,time\n1,1700000001\n2,1700000002\n");
  EXPECT_THAT(load_examples({rows}, {2}).notes, ElementsAre(AllOf(HasSubstr("rows.csv: column 2 ('time') is rounded"),
                                                                  HasSubstr("(and before training)"))));
  std::string values;
  for (const double value : {1.0, 1700000001.0, 2.0, 1700000002.0})
    values.append(reinterpret_cast<const char*>(&value), 8);
  const std::string array = folder.write("rows.npy", npy("<f8", "(2, 2)", values));
  EXPECT_THAT(load_examples({array}, {2}).notes, ElementsAre(HasSubstr("rows.npy: column 2 is rounded")));
  const std::string exact = folder.write("exact.csv", "a,b\n1,2\n3,4\n");
  EXPECT_THAT(load_examples({exact}, {2}).notes, IsEmpty());
}

}  // namespace
}  // namespace evenkeel::data
