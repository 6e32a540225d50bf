#include "evenkeel/lab/training.h"

#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/lab/clouds_testing.h"

namespace evenkeel::lab {
namespace {

ModelSpec two_layers() {
  ModelSpec spec;
  spec.name = "two-layers";
  spec.input = {3};
  spec.classes = 2;
  spec.layers.resize(2);
  for (LayerSpec& layer : spec.layers) layer.type = "linear";
  spec.layers[0].out = 8;
  return spec;
}

TEST(LabTraining, learns_what_can_be_learned) {
  const data::Splits splits = cloud_splits();
  Training run({.spec = two_layers(), .learning_rate = 0.1, .batch = 20, .steps = 60, .threads = 1}, splits);
  const double at_first = run.test().loss;
  while (run.step()) {
  }
  EXPECT_EQ(run.steps_done(), 60);
  EXPECT_FALSE(run.diverged());
  EXPECT_LT(run.test().loss, at_first);
  EXPECT_EQ(run.test().accuracy, 1.0);
  EXPECT_EQ(run.train(50).examples, 50);
}

TEST(LabTraining, is_a_function_of_the_seed) {
  const data::Splits splits = cloud_splits();
  const auto loss_after = [&](uint64_t seed, int threads) {
    Training run({.spec = two_layers(), .batch = 16, .steps = 9, .seed = seed, .threads = threads}, splits);
    while (run.step()) {
    }
    return run.loss();
  };
  EXPECT_EQ(loss_after(1, 1), loss_after(1, 2));
  EXPECT_NE(loss_after(1, 1), loss_after(2, 1));
}

TEST(LabTraining, the_next_batch_is_the_one_that_the_step_takes) {
  const data::Splits splits = cloud_splits();
  Training run({.spec = two_layers(), .learning_rate = 0, .batch = 30, .steps = 7, .threads = 1}, splits);
  std::vector<float> x, again;
  std::vector<int32_t> labels;
  std::vector<std::vector<float>> seen;
  for (int i = 0; i < 7; ++i) {  // two epochs and a step, of three batches each: ten examples of each epoch are dropped
    run.next_batch(x, labels);
    EXPECT_EQ(x.size(), 90u);
    run.next_batch(again, labels);
    EXPECT_EQ(x, again);
    EXPECT_TRUE(seen.empty() || seen.back() != x);
    seen.push_back(x);
    ASSERT_TRUE(run.step());
  }
  EXPECT_FALSE(run.step());
}

TEST(LabTraining, says_where_it_diverges) {
  const data::Splits splits = cloud_splits();
  ModelSpec spec = two_layers();
  spec.norm = NormKind::kNone;
  spec.loss = "mse";
  Training run({.spec = spec, .learning_rate = 1e6, .batch = 20, .steps = 200, .threads = 1}, splits);
  while (run.step()) {
  }
  EXPECT_TRUE(run.diverged());
  EXPECT_LT(run.steps_done(), 200);
}

TEST(FirstExamples, are_a_copy) {
  const data::Dataset all = clouds(10, 3);
  const data::Dataset part = data::first_examples(all, 4);
  EXPECT_EQ(part.count, 4);
  EXPECT_EQ(part.values.shape(), (Shape{4, 3}));
  EXPECT_EQ(part.labels, (std::vector<int32_t>{0, 1, 0, 1}));
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(part.values.values<float>()[i], all.values.values<float>()[i]);
  EXPECT_EQ(data::first_examples(all, 99).count, 10);
  EXPECT_EQ(data::first_examples(all, 0).count, 0);
}

}  // namespace
}  // namespace evenkeel::lab
