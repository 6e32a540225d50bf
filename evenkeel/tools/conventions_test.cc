#include "evenkeel/tools/conventions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "evenkeel/core/error.h"

namespace evenkeel::tools {
namespace {

TEST(Conventions, momentum_means_the_new_in_pytorch_and_the_old_in_keras_and_onnx) {
  EXPECT_EQ(new_batch_weight_of(Dialect::kPyTorch, 0.1), 0.1);
  EXPECT_EQ(new_batch_weight_of(Dialect::kEvenkeel, 0.1), 0.1);
  EXPECT_EQ(new_batch_weight_of(Dialect::kOnnx, static_cast<double>(0.9f)), 0.1);
  EXPECT_EQ(new_batch_weight_of(Dialect::kKeras, 0.99), 0.01);
  for (const Dialect dialect : {Dialect::kEvenkeel, Dialect::kPyTorch, Dialect::kKeras, Dialect::kOnnx})
    for (const double w : {1.0, 0.5, 0.1, 0.01, 0.001, 0.0003})
      EXPECT_EQ(new_batch_weight_of(dialect, momentum_of(dialect, w)), w) << name_of(dialect);
  EXPECT_EQ(momentum_of(Dialect::kOnnx, 0.1), 0.9);
}

TEST(Conventions, the_running_variance_is_converted_by_the_number_of_values) {
  const auto biased = RunningVariance::kBiased, unbiased = RunningVariance::kUnbiased;
  // 1, 2, 3, 6: squared deviations from 3 sum to 14.
  EXPECT_DOUBLE_EQ(converted_variance(14.0 / 4, 4, biased, unbiased), 14.0 / 3);
  EXPECT_DOUBLE_EQ(converted_variance(14.0 / 3, 4, unbiased, biased), 14.0 / 4);
  EXPECT_EQ(converted_variance(2, 1, biased, biased), 2);
  EXPECT_EQ(converted_variance(2, 10, RunningVariance::kUnknown, biased), 2);
  EXPECT_THROW(converted_variance(2, 1, biased, unbiased), UsageError);
  EXPECT_THROW(converted_variance(2, std::numeric_limits<double>::quiet_NaN(), biased, unbiased), UsageError);
}

TEST(Conventions, are_said_in_words) {
  EXPECT_EQ(
      in_words(0.1, RunningVariance::kUnbiased),
      "weight of a new batch 0.1 (PyTorch momentum 0.1, Keras/ONNX momentum 0.9); running variance unbiased (n-1)");
  EXPECT_EQ(in_words({}, usual_running_variance(Dialect::kOnnx)),
            "all batches count alike (PyTorch momentum None); running variance biased (n)");
  EXPECT_EQ(variance_in_words(usual_running_variance(Dialect::kKeras)),
            "running variance biased or unbiased: the file does not say");
}

TEST(Conventions, a_weight_of_0_is_no_momentum_of_0) {
  const std::string words = weight_in_words(new_batch_weight_of(Dialect::kOnnx, 1));
  EXPECT_THAT(words, testing::HasSubstr("never updated, or a plain average"));
  EXPECT_THAT(words, testing::Not(testing::HasSubstr("PyTorch momentum 0")));
}

}  // namespace
}  // namespace evenkeel::tools
