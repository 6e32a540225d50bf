#include "evenkeel/data/standardization.h"

#include <cmath>

#include "evenkeel/data/dataset.h"
#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

Dataset bytes(int64_t count, Shape example_shape) {
  Dataset set;
  set.count = count;
  set.example_shape = example_shape;
  example_shape.insert(example_shape.begin(), count);
  set.values = Tensor(DType::kU8, example_shape);
  uint32_t state = 7;
  for (uint8_t& v : set.values.values<uint8_t>()) {
    v = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  }
  return set;
}

Dataset as_floats(const Dataset& set, double scale, double shift) {
  Dataset out;
  out.count = set.count;
  out.example_shape = set.example_shape;
  out.values = Tensor(DType::kF32, set.values.shape());
  const auto from = set.values.values<uint8_t>();
  const auto to = out.values.values<float>();
  for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i] * scale + shift);
  return out;
}

// Two plain passes in long double over one channel.
std::pair<double, double> reference(const Dataset& set, int64_t c) {
  const int64_t plane = element_count(set.example_shape) / set.example_shape[0];
  std::vector<long double> values;
  for (int64_t i = 0; i < set.count; ++i) {
    for (int64_t k = 0; k < plane; ++k) {
      const auto at = static_cast<size_t>((i * set.example_shape[0] + c) * plane + k);
      values.push_back(set.values.dtype() == DType::kU8 ? set.values.values<uint8_t>()[at] / 255.0L
                                                        : static_cast<long double>(set.values.values<float>()[at]));
    }
  }
  long double sum = 0, squares = 0;
  for (const long double v : values) sum += v;
  const long double mean = sum / static_cast<long double>(values.size());
  for (const long double v : values) squares += (v - mean) * (v - mean);
  return {static_cast<double>(mean), static_cast<double>(sqrtl(squares / static_cast<long double>(values.size())))};
}

TEST(Standardization, agrees_with_two_passes_in_long_double) {
  for (const Shape& shape : {Shape{1, 5, 7}, Shape{3, 4, 3}, Shape{6}}) {
    for (const int64_t count : {1, 7, 8, 9, 101}) {
      const Dataset set = bytes(count, shape);
      for (const Dataset& d : {as_floats(set, 1, 1e6), as_floats(set, 1e-3, -0.1)}) {
        const Standardization s = standardization_of(d);
        ASSERT_EQ(s.mean.size(), static_cast<size_t>(shape[0]));
        for (int64_t c = 0; c < shape[0]; ++c) {
          const auto [mean, std] = reference(d, c);
          // a few roundings of double in the merges
          EXPECT_NEAR(s.mean[static_cast<size_t>(c)], mean, 1e-14 * (std::abs(mean) + std));
          const double expected = std > 0 ? std : 1;
          EXPECT_NEAR(s.std[static_cast<size_t>(c)], expected, 1e-12 * expected);
        }
      }
      if (shape.size() != 3) continue;
      const Standardization s = standardization_of(set);
      for (int64_t c = 0; c < shape[0]; ++c) {
        const auto [mean, std] = reference(set, c);
        EXPECT_NEAR(s.mean[static_cast<size_t>(c)], mean, 1e-14);
        EXPECT_NEAR(s.std[static_cast<size_t>(c)], std, 1e-14);
      }
    }
  }
}

TEST(Standardization, has_the_same_bits_for_any_number_of_threads) {
  const Dataset set = bytes(101, {3, 5, 7});
  const Dataset floats = as_floats(set, 0.1, 3);
  for (const Dataset* d : {&set, &floats}) {
    const Standardization one = standardization_of(*d, 1);
    for (const int threads : {2, 3, 8, 200}) {
      EXPECT_EQ(standardization_of(*d, threads).mean, one.mean);
      EXPECT_EQ(standardization_of(*d, threads).std, one.std);
    }
  }
}

TEST(Standardization, a_constant_channel_gets_deviation_one) {
  Dataset set = bytes(10, {1, 2, 2});
  for (uint8_t& v : set.values.values<uint8_t>()) v = 77;
  EXPECT_EQ(standardization_of(set).std[0], 1);
  EXPECT_EQ(standardization_of(set).mean[0], 77.0 / 255);
  EXPECT_EQ(standardization_of(as_floats(set, 0.1, 1e6)).std[0], 1);
}

TEST(Standardization, refuses_an_empty_training_set) {
  EXPECT_THROW(standardization_of(bytes(0, {1, 2, 2})), UsageError);
}

TEST(RangeOf, is_in_the_units_of_the_standardization_for_any_threads) {
  Dataset set;
  set.name = "a set";
  set.count = 5;
  set.example_shape = {1, 1, 3};
  set.values = Tensor(DType::kU8, {5, 1, 1, 3});
  for (size_t i = 0; i < 15; ++i) set.values.values<uint8_t>()[i] = static_cast<uint8_t>(51 + (i * 7) % 15);
  for (const int threads : {1, 2, 40}) EXPECT_EQ(range_of(set, threads), (ValueRange{0.2, 65 / 255.0})) << threads;
  set.values = Tensor(DType::kF32, {5, 1, 1, 3});
  set.values.values<float>()[14] = -2.5f;
  for (const int threads : {1, 2, 40}) EXPECT_EQ(range_of(set, threads), (ValueRange{-2.5, 0})) << threads;
  set.count = 0;
  EXPECT_THROW(range_of(set), UsageError);
}

}  // namespace
}  // namespace evenkeel::data
