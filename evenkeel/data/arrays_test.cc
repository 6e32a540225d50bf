#include "evenkeel/data/arrays.h"

#include <algorithm>

#include "evenkeel/data/files_testing.h"
#include "evenkeel/data/pictures_testing.h"

namespace evenkeel::data {
namespace {

// n examples of 2 x 3 pixels: 0, 1, 2, ...
std::string images(int n) {
  std::string bytes;
  for (int i = 0; i < 6 * n; ++i) bytes += static_cast<char>(i);
  return npy("|u1", "(" + std::to_string(n) + ", 2, 3)", bytes);
}
std::string labels(const std::string& values) { return npy("|u1", "(" + std::to_string(values.size()) + ",)", values); }

TEST(Npz, pairs_are_known_by_their_names) {
  const TemporaryFolder folder;
  for (const auto& [x, y] : std::vector<std::pair<std::string, std::string>>{
           {"x", "y"}, {"X", "y"}, {"images", "labels"}, {"data", "target"}, {"arr_0", "arr_1"}}) {
    const std::string path = folder.write(
        "d.npz", zip({{"more.npy", images(1)}, {y + ".npy", labels(std::string("\0\1\0", 3))}, {x + ".npy", images(3)}},
                     {.deflate = true, .zip64_headers = true}));
    const Splits splits = read_npz(path, {});
    EXPECT_EQ(splits.train.count, 3) << x;
    EXPECT_EQ(splits.test.count, 0);
    EXPECT_EQ(splits.train.labels, (std::vector<int32_t>{0, 1, 0}));
    EXPECT_EQ(splits.train.values.dtype(), DType::kU8);
    EXPECT_EQ(splits.train.values.values<uint8_t>()[17], 17);
  }
}

TEST(Npz, a_test_set_of_its_own_is_kept) {
  const TemporaryFolder folder;
  const std::string path = folder.write("d.npz", zip({{"x_train.npy", images(3)},
                                                      {"y_train.npy", labels(std::string("\0\1\2", 3))},
                                                      {"x_test.npy", images(2)},
                                                      {"y_test.npy", labels(std::string("\1\0", 2))}}));
  const Splits splits = load(path);
  EXPECT_EQ(splits.train.count, 3);
  EXPECT_EQ(splits.test.count, 2);
  EXPECT_EQ(splits.test.class_count(), 3);
}

TEST(Npz, a_validation_set_of_its_own_is_kept) {
  const TemporaryFolder folder;
  const auto with = [&](const std::string& x, const std::string& y, const std::string& y_values) {
    return folder.write("d.npz", zip({{"x_train.npy", images(3)},
                                      {"y_train.npy", labels(std::string("\0\1\0", 3))},
                                      {"x_test.npy", images(2)},
                                      {"y_test.npy", labels(std::string("\1\0", 2))},
                                      {x, images(2)},
                                      {y, labels(y_values)}}));
  };
  for (const auto& [x, y] : std::vector<std::pair<std::string, std::string>>{{"x_val.npy", "y_val.npy"},
                                                                             {"x_valid.npy", "y_valid.npy"},
                                                                             {"x_validation.npy", "y_validation.npy"},
                                                                             {"val_images.npy", "val_labels.npy"}}) {
    const Splits splits = load(with(x, y, std::string("\1\1", 2)));
    EXPECT_EQ(splits.validation.labels, (std::vector<int32_t>{1, 1})) << x;
    EXPECT_EQ(splits.train.count, 3);
  }
  const Splits two = load(folder.write("two.npz", zip({{"x_train.npy", images(3)},
                                                       {"y_train.npy", labels(std::string("\0\1\0", 3))},
                                                       {"x_val.npy", images(2)},
                                                       {"y_val.npy", labels(std::string("\1\0", 2))}})));
  EXPECT_EQ(two.test.labels, (std::vector<int32_t>{1, 0}));  // as of a folder with train and val
  EXPECT_EQ(two.validation.count, 0);
  const std::string path = with("x_val.npy", "y_val.npy", std::string("\1\1", 2));
  EXPECT_SAYS(message_of<UsageError>([&] { load(path, {.validation_fraction = 0.5}); }), "leave --validation out");
  EXPECT_SAYS(message_of<UsageError>([&] { load(with("x_val.npy", "more.npy", "\1\1")); }), "x_val but no y_val");
  EXPECT_SAYS(message_of<FormatError>([&] { load(with("x_val.npy", "y_val.npy", "\1\2")); }), "y_val has 3 classes");
}

TEST(Npz, names_are_those_of_scikit_learn_too_and_endings_may_be_capitals) {
  const TemporaryFolder folder;
  const std::string y = labels(std::string("\0\1\2", 3)), z = labels(std::string("\1\0", 2));
  const Splits splits = load(folder.write(
      "D.NPZ", zip({{"X_train.npy", images(3)}, {"y_train.npy", y}, {"X_test.npy", images(2)}, {"y_test.npy", z}})));
  EXPECT_EQ(splits.train.count, 3);
  EXPECT_EQ(splits.test.labels, (std::vector<int32_t>{1, 0}));
}

TEST(Npz, a_training_set_alone_is_split_but_not_beside_half_of_a_test_set) {
  const TemporaryFolder folder;
  const std::string y = labels(std::string("\0\1\0\1\0\1\0\1\0\1", 10));
  for (const char* x : {"x_train.npy", "X_train.npy"}) {
    EXPECT_EQ(load(folder.write("d.npz", zip({{x, images(10)}, {"y_train.npy", y}}))).test.count, 2) << x;
    const std::string half =
        folder.write("h.npz", zip({{x, images(10)}, {"y_train.npy", y}, {"x_test.npy", images(2)}}));
    EXPECT_SAYS(message_of<UsageError>([&] { load(half); }), "expected those of one of these lists");
  }
}

TEST(Npz, predict_says_which_of_the_training_and_the_test_set_it_takes) {
  const TemporaryFolder folder;
  const std::string both = folder.write("d.npz", zip({{"x_train.npy", images(3)}, {"x_test.npy", images(2)}}));
  const Dataset set = load_examples({both}, {1, 2, 3});
  EXPECT_EQ(set.count, 2);
  ASSERT_EQ(set.notes.size(), 1u);
  EXPECT_SAYS(set.notes[0], "holds x_train and x_test: the examples of x_test are predicted");
  const std::string one = folder.write("e.npz", zip({{"x_test.npy", images(2)}, {"more.npy", images(2)}}));
  EXPECT_TRUE(load_examples({one}, {1, 2, 3}).notes.empty());
}

TEST(Npz, a_pair_is_split_as_that_of_two_files_is) {
  const TemporaryFolder folder;
  const std::string y = labels(std::string("\0\1\0\1\0\1\0\1\0\1", 10));
  const std::string npz = folder.write("d.npz", zip({{"x.npy", images(10)}, {"y.npy", y}}));
  const std::string pair = folder.write("x.npy", images(10)) + "," + folder.write("y.npy", y);
  const Splits one = load(npz, {.seed = 7}), two = load(pair, {.seed = 7});
  EXPECT_EQ(one.test.count, 2);
  EXPECT_TRUE(std::ranges::equal(one.test.values.values<uint8_t>(), two.test.values.values<uint8_t>()));
  EXPECT_EQ(one.train.labels, two.train.labels);
}

TEST(Npz, other_names_and_numbers_are_refused) {
  const TemporaryFolder folder;
  const auto path = [&](const std::string& x, const std::string& y) {
    return folder.write("d.npz", zip({{x, images(2)}, {y, labels(std::string("\0\1\0", 3))}}));
  };
  EXPECT_SAYS(message_of<UsageError>([&] { load(path("a.npy", "b.npy")); }), "found the arrays a.npy, b.npy");
  EXPECT_SAYS(
      message_of<UsageError>([&] { load(path("a.npy", "b.npy")); }),
      "one of these lists: x_train, y_train, x_test and y_test; X_train, y_train, X_test and y_test; train_images, "
      "train_labels, test_images and test_labels; x_train and y_train; X_train and y_train; train_images and "
      "train_labels; x and y; X and y; images and labels; data and labels; data and target; arr_0 and arr_1");
  EXPECT_SAYS(message_of<FormatError>([&] { load(path("x.npy", "y.npy")); }), "d.npz:x.npy holds 2 examples");
  EXPECT_THROW(load(folder.write("e.npz", "no zip")), FormatError);
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.write("f.npz", zip({}))); }), "no arrays");
}

TEST(Layout, arrays_of_channels_last_are_put_in_order_where_that_is_stated) {
  const TemporaryFolder folder;
  std::string last, first;  // 2 examples of 3 channels of 2 x 4
  for (char i = 0; i < 2; ++i) {
    for (char p = 0; p < 8; ++p) {
      for (char c = 0; c < 3; ++c) last += static_cast<char>(50 * i + 10 * c + p);
    }
    for (char c = 0; c < 3; ++c) {
      for (char p = 0; p < 8; ++p) first += static_cast<char>(50 * i + 10 * c + p);
    }
  }
  const std::string y = folder.write("y.npy", labels(std::string("\0\1", 2)));
  const std::string x = folder.write("x.npy", npy("|u1", "(2, 2, 4, 3)", last));
  const Dataset set = read_npy_pair("d", x, y, {.preprocess = {.layout = Layout::kChannelsLast}});
  EXPECT_EQ(set.example_shape, (Shape{3, 2, 4}));
  const auto values = set.values.values<uint8_t>();
  EXPECT_EQ(std::string(values.begin(), values.end()), first);
  const Dataset examples = load_examples({x}, {3, 2, 4}, {}, {.layout = Layout::kChannelsLast});
  EXPECT_TRUE(std::ranges::equal(examples.values.values<uint8_t>(), values));
  EXPECT_THROW(load_examples({x}, {3, 2, 4}), UsageError);
}

}  // namespace
}  // namespace evenkeel::data
