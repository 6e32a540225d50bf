#include "evenkeel/lab/sweep.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace evenkeel::lab {
namespace {

TEST(Sweep, takes_the_most_accurate_rate) {
  const auto end = [](double accuracy) { return json_of(RunEnd{.loss = 1, .accuracy = accuracy}); };
  EXPECT_EQ(best_rate({0.1, 0.2, 0.3}, {end(0.5), end(0.7), end(0.6)}), 0.2);
  EXPECT_EQ(best_rate({0.1, 0.2}, {end(0.7), end(0.7)}), 0.1);
  EXPECT_EQ(best_rate({0.1, 0.2}, {json_of(RunEnd{.diverged = true}), end(0.1)}), 0.2);
}

TEST(Sweep, numbers_that_are_none_are_null) {
  EXPECT_TRUE(number(std::nan("")).is_null());
  EXPECT_TRUE(number(std::numeric_limits<double>::infinity()).is_null());
  EXPECT_TRUE(json_of(RunEnd{.diverged = true})["loss"].is_null());
  const Json json{{"a", number(2.5)}, {"b", nullptr}};
  EXPECT_EQ(number_in(json, "a"), 2.5);
  EXPECT_EQ(number_in(json, "b"), std::nullopt);
  EXPECT_EQ(number_in(json, "c"), std::nullopt);
}

TEST(Sweep, a_run_ends_with_the_means_of_its_last_steps) {
  data::Splits splits;
  splits.train.example_shape = {1};
  splits.train.count = 2;
  splits.train.values = Tensor(DType::kF32, {2, 1});
  splits.train.values.values<float>()[0] = -1;
  splits.train.values.values<float>()[1] = 1;
  splits.train.labels = {0, 1};
  splits.train.class_names = {"left", "right"};
  ModelSpec spec;
  spec.name = "line";
  spec.input = {1};
  spec.classes = 2;
  spec.norm = NormKind::kNone;
  spec.layers.resize(1);
  spec.layers[0].type = "linear";
  const TrainingSettings settings{.spec = spec, .learning_rate = 0.5, .batch = 2, .steps = 50, .threads = 1};
  Training by_hand(settings, splits), run(settings, splits);
  double sum = 0;
  while (by_hand.step()) {
    if (by_hand.steps_done() > 50 - kLastSteps) sum += by_hand.loss() / static_cast<double>(kLastSteps);
  }
  int64_t steps = 0;
  const RunEnd end = finish(run, [&] { ++steps; });
  EXPECT_EQ(steps, 50);
  EXPECT_FALSE(end.diverged);
  EXPECT_NEAR(*end.loss, sum, 1e-12);
  EXPECT_EQ(end.accuracy, 1);
}

}  // namespace
}  // namespace evenkeel::lab
