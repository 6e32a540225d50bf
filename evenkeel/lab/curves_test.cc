#include "evenkeel/lab/curves.h"

#include <gtest/gtest.h>

#include "evenkeel/lab/clouds_testing.h"

namespace evenkeel::lab {
namespace {

// One linear layer: no norm.
TrainingSettings line(const std::string& loss, double rate) {
  TrainingSettings settings{.spec = {}, .learning_rate = rate, .batch = 20, .steps = 25};
  settings.spec.name = "line";
  settings.spec.input = {3};
  settings.spec.classes = 2;
  settings.spec.loss = loss;
  settings.spec.layers.resize(1);
  settings.spec.layers[0].type = "linear";
  return settings;
}

TEST(Curves, a_curve_is_measured_before_the_first_step_and_then_every_so_many) {
  const data::Splits splits = cloud_splits();
  int looks = 0;
  CurveSettings settings{.training = line("cross_entropy", 0.5), .every = 10};
  settings.look = [&](Training&) { ++looks; };
  const Json curve = train_curve(settings, splits);
  EXPECT_EQ(numbers_of(curve["steps"]), (std::vector<double>{0, 10, 20}));
  EXPECT_EQ(looks, 3);
  EXPECT_EQ(curve["accuracy"].back(), 1.0);
  EXPECT_EQ(curve["seconds"][0], 0.0);
  EXPECT_GT(curve["seconds"][2], curve["seconds"][1]);
  EXPECT_EQ(curve["diverged"], false);
  EXPECT_EQ(curve["network"], "line");
}

TEST(Curves, a_run_that_diverges_counts_as_one_that_guesses) {
  const data::Splits splits = cloud_splits();
  const Json curve = train_curve({.training = line("mse", 1e30), .every = 1}, splits);
  EXPECT_EQ(curve["diverged"], true);
  EXPECT_LT(curve["steps"].size(), 25u);
  const Json end = train_to_end(line("mse", 1e30), splits);
  EXPECT_EQ(end["diverged"], true);
  EXPECT_EQ(end["accuracy"], 0.5);
  const Json sound = train_to_end(line("cross_entropy", 0.5), splits,
                                  [](Training& run, Json& json) { json["steps"] = run.steps_done(); });
  EXPECT_EQ(sound["accuracy"], 1.0);
  EXPECT_EQ(sound["steps"], 25);
}

TEST(Curves, the_median_line_goes_as_far_as_the_shortest) {
  const report::Series series = median_line("x", {0, 1, 2}, {{1, 2, 3}, {5, 6}, {2, 9, 9}});
  EXPECT_EQ(series.x, (std::vector<double>{0, 1}));
  EXPECT_EQ(series.y, (std::vector<double>{2, 6}));
  EXPECT_EQ(series.low, (std::vector<double>{1, 2}));
  EXPECT_EQ(series.high, (std::vector<double>{5, 9}));
  EXPECT_TRUE(median_line("x", {0}, {{1}}).low.empty());
}

TEST(Curves, the_usual_network_suits_the_data) {
  data::Splits splits = cloud_splits();
  EXPECT_EQ(usual_network({.splits = &splits}).name, "mlp");
  splits.train.example_shape = {1, 28, 28};
  EXPECT_EQ(usual_network({.splits = &splits}).name, "cnn");
  EXPECT_EQ(usual_network({.splits = &splits, .model = "lenet"}).name, "lenet");
}

}  // namespace
}  // namespace evenkeel::lab
