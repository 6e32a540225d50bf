#include "evenkeel/data/fit.h"

#include "evenkeel/data/dataset.h"
#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

using Range = std::optional<ValueRange>;
const Shape kImage = {1, 2, 2};

std::string refusal_of(std::vector<float> values, const Range& trained, const Shape& shape = kImage) {
  return message_of<UsageError>([&] { require_scale("x.npy", std::span<const float>(values), shape, trained); });
}
bool fits(std::vector<float> values, const Range& trained, const Shape& shape = kImage) {
  require_scale("x.npy", std::span<const float>(values), shape, trained);
  return true;
}
bool bytes_fit(std::vector<uint8_t> bytes, double divisor, const Range& trained) {
  require_scale("x.npy", std::span<const uint8_t>(bytes), divisor, trained);
  return true;
}

Dataset images(Tensor values) {
  Dataset set;
  set.name = "a set";
  set.example_shape = {1, 2, 2};
  set.count = values.shape()[0];
  set.values = std::move(values);
  return set;
}

TEST(Fit, values_on_another_scale_are_refused_with_both_ranges_and_the_remedy) {
  EXPECT_SAYS(refusal_of({0, 255}, ValueRange{0, 1}), "x.npy: found values from 0 to 255");
  EXPECT_SAYS(refusal_of({0, 255}, ValueRange{0, 1}), "trained on 0 to 1; divide them by 255");
  EXPECT_SAYS(refusal_of({0, 1}, ValueRange{0, 255}), "multiply them by 255");
}

TEST(Fit, signals_and_other_scales_are_taken_however_large_or_small) {
  EXPECT_TRUE(fits({-0.57f, 0.65f}, ValueRange{-1.4, 13}));  // a quiet window of a signal with one outlier
  EXPECT_TRUE(fits({-90, 128}, ValueRange{-1, 1}));
  EXPECT_TRUE(fits({0.2f, 1}, ValueRange{0, 16}));
  EXPECT_TRUE(fits({0, 1.f / 255}, ValueRange{0, 1}));
}

TEST(Fit, whole_numbers_are_pixels_where_the_model_knows_pixels) {
  EXPECT_TRUE(whole_numbers_are_pixels(1, {}));
  EXPECT_TRUE(whole_numbers_are_pixels(1, ValueRange{0, 255}));
  EXPECT_TRUE(whole_numbers_are_pixels(200, ValueRange{0, 1}));
  EXPECT_FALSE(whole_numbers_are_pixels(1, ValueRange{0, 1}));       // images of 0 and 1
  EXPECT_FALSE(whole_numbers_are_pixels(16, ValueRange{0, 16}));     // 8x8 digits
  EXPECT_FALSE(whole_numbers_are_pixels(255, ValueRange{0, 4078}));  // 12 bits, a dark one
}

TEST(Fit, pictures_that_are_only_bright_or_dark_or_black_are_taken) {
  EXPECT_TRUE(fits({0, 0.1f}, ValueRange{0, 1}));
  EXPECT_TRUE(fits({0, 5}, ValueRange{0, 255}));
  EXPECT_TRUE(fits({0, 0}, ValueRange{0, 255}));  // black on any scale
  EXPECT_TRUE(fits({-0.5f, 0.9f}, ValueRange{-2.1, 2.6}));
  EXPECT_TRUE(fits({0, 255}, {}));  // a model of an older version
  EXPECT_TRUE(bytes_fit({0, 2}, 255, ValueRange{0, 1}));
  EXPECT_TRUE(bytes_fit({0, 255}, 1, ValueRange{0, 250}));
  EXPECT_SAYS(message_of<UsageError>([] { bytes_fit({0, 1}, 255, ValueRange{0, 1}); }), "0 to 1");
  std::vector<uint8_t> dark(784);  // as good as black, and no mask of 0 and 1
  dark[100] = 1;
  EXPECT_TRUE(bytes_fit(dark, 255, ValueRange{0, 1}));
}

TEST(Fit, features_of_tables_are_not_compared_unless_they_are_pixels) {
  EXPECT_TRUE(fits({1e6f, 3}, ValueRange{0, 1}, {2}));
  EXPECT_TRUE(fits({0.5f, 255}, ValueRange{0, 1}, {784}));  // no whole numbers
  EXPECT_SAYS(refusal_of({0, 255}, ValueRange{0, 1}, {784}), "divide them by 255");
  EXPECT_SAYS(refusal_of({0, 0.7f}, ValueRange{0, 255}, {784}), "multiply them by 255");
  EXPECT_TRUE(fits({0, 1}, ValueRange{0, 255}, {784}));  // whole numbers: a dark one
}

TEST(Fit, bytes_are_divided_as_the_model_saw_its_pixels) {
  EXPECT_EQ(byte_divisor("x", {}), 255);
  EXPECT_EQ(byte_divisor("x", ValueRange{0, 1}), 255);
  EXPECT_EQ(byte_divisor("x", ValueRange{-0.1, 1.2}), 255);
  EXPECT_EQ(byte_divisor("x", ValueRange{0, 255}), 1);
  for (const ValueRange& range :
       {ValueRange{-1, 1}, ValueRange{-0.42, 2.82}, ValueRange{0, 16}, ValueRange{0, 65535}}) {
    EXPECT_SAYS(message_of<UsageError>([&] { byte_divisor("x", range); }), "NPY array of floats") << range.max;
  }
}

TEST(Fit, a_set_of_bytes_becomes_floats_only_for_a_model_of_such_floats) {
  const auto bytes = [] {
    Tensor values(DType::kU8, {2, 1, 2, 2});
    for (size_t i = 0; i < 8; ++i) values.values<uint8_t>()[i] = static_cast<uint8_t>(30 * i);
    return images(std::move(values));
  };
  Dataset unit = bytes(), whole = bytes();
  fit_to(unit, ValueRange{0, 1});
  EXPECT_EQ(unit.values.dtype(), DType::kU8);
  fit_to(whole, ValueRange{0, 255});
  ASSERT_EQ(whole.values.dtype(), DType::kF32);
  EXPECT_EQ(whole.values.shape(), (Shape{2, 1, 2, 2}));
  EXPECT_EQ(whole.values.values<float>()[7], 210.0f);
  EXPECT_SAYS(message_of<UsageError>([&] {
                fit_to(whole, ValueRange{0, 1});
              }),
              "data 'a set': found values from 0 to 210");
  Dataset none = images(Tensor(DType::kF32, {0, 1, 2, 2}));
  fit_to(none, ValueRange{0, 1});
  EXPECT_EQ(none.count, 0);
}

TEST(Fit, channels_last_is_told_from_channels_first) {
  for (const Shape& shape : {Shape{9, 28, 28, 1}, Shape{9, 32, 30, 3}, Shape{9, 32, 32, 4}, Shape{9, 2, 2, 1}}) {
    EXPECT_SAYS(message_of<UsageError>([&] { require_channels_first("x", shape); }), "x.transpose(0, 3, 1, 2)");
  }
  // Single channels, feature maps, pictures as small as their channels, signals; and what is no batch of images.
  for (const Shape& shape : {Shape{9, 1, 28, 28}, Shape{9, 3, 32, 32}, Shape{9, 3, 3, 3}, Shape{9, 64, 4, 4},
                             Shape{9, 64, 1, 1}, Shape{9, 12, 1000, 1}, Shape{9, 28, 28}, Shape{9, 1, 28, 1},
                             Shape{9, 28, 28, 2}, Shape{9, 8, 8, 4}, Shape{9, 32, 64, 1}}) {
    EXPECT_NO_THROW(require_channels_first("x", shape)) << to_string(shape);
  }
}

TEST(Fit, a_label_far_beyond_the_others_is_named) {
  std::vector<int32_t> labels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 200, 9};
  const std::string message = message_of<FormatError>([&] { require_dense_labels("y", labels); });
  EXPECT_SAYS(message, "y: label 200 at index 9 makes 201 classes, but only 11 of them have examples");
  EXPECT_NO_THROW(require_dense_labels("y", labels, 1000));  // asked of a model with 1000 classes
  EXPECT_THROW(require_dense_labels("y", labels, 200), FormatError);
  labels[9] = 11;  // class 10 is missing
  EXPECT_NO_THROW(require_dense_labels("y", labels));
  EXPECT_NO_THROW(require_dense_labels("y", std::vector<int32_t>{1, 2, 3}));
  EXPECT_NO_THROW(require_dense_labels("y", {}));
}

TEST(Fit, one_class_is_nothing_to_learn) {
  Dataset set;
  set.name = "a set";
  set.class_names = {"cat", "dog"};
  set.labels = {1, 1, 1};
  EXPECT_SAYS(message_of<UsageError>([&] { require_learnable(set); }), "one class only ('dog')");
  set.labels = {};
  EXPECT_THROW(require_learnable(set), UsageError);
  set.labels = {1, 1, 0};
  EXPECT_NO_THROW(require_learnable(set));
}

}  // namespace
}  // namespace evenkeel::data
