#include "evenkeel/lab/landscape.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "evenkeel/lab/experiment.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::lab {
namespace {

// y = w x + b with one output and the label 0, whose target is 1: one example x = 2 from w = 3, b = -1 has error e = wx + b - 1 = 4, loss 16,
// gradient 2e (x, 1) = (16, 8). A step of rate r makes e = 4 - r (16 * 2 + 8) = 4 - 40 r, and the gradient changes by 80 r (2, 1).
struct Line {
  ModelSpec spec;
  ParameterStore store;
  std::vector<float> x = {2};
  std::vector<int32_t> labels = {0};

  Line() {
    spec.name = "line";
    spec.input = {1};
    spec.classes = 1;
    spec.norm = NormKind::kNone;
    spec.loss = "mse";
    spec.layers.resize(1);
    spec.layers[0].type = "linear";
    spec.layers[0].name = "fc";
    initialize(build_network(spec, Mode::kTrain), 1, &store);
    store.writable("fc.weight").values<float>()[0] = 3;
    store.writable("fc.bias").values<float>()[0] = -1;
  }
};

TEST(Landscape, of_a_line_is_the_one_found_by_hand) {
  Line line;
  Probe probe(line.spec, line.store, {.batch = 1, .threads = 1, .layers = false});
  const Landscape l = landscape_at(probe, line.store, line.x.data(), line.labels.data(), 1, {0.025, 0.1, 0.2});
  EXPECT_NEAR(l.loss, 16, 1e-5);
  EXPECT_NEAR(l.gradient_norm, 8 * std::sqrt(5.0), 1e-5);
  ASSERT_EQ(l.losses.size(), 3u);
  EXPECT_NEAR(l.losses[0], 9, 1e-4);
  EXPECT_NEAR(l.losses[1], 0, 1e-4);
  EXPECT_NEAR(l.losses[2], 16, 1e-4);
  EXPECT_NEAR(l.loss_range(), 16, 1e-4);
  EXPECT_NEAR(l.gradient_change, 16 * std::sqrt(5.0), 1e-4);
  EXPECT_NEAR(l.smoothness, 10, 1e-4);  // 80 r sqrt(5) / (r 8 sqrt(5)) at every r
}

TEST(Landscape, leaves_the_weights_as_they_were) {
  Line line;
  const Tensor weight = line.store.at("fc.weight").clone();
  Probe probe(line.spec, line.store, {.batch = 1, .threads = 1, .layers = false});
  landscape_at(probe, line.store, line.x.data(), line.labels.data(), 1, {0.1, 1});
  EXPECT_EQ(std::memcmp(weight.raw(), line.store.at("fc.weight").raw(), weight.bytes()), 0);
  EXPECT_NEAR(probe.run(line.x.data(), line.labels.data(), 1), 16, 1e-5);
}

TEST(Landscape, says_when_a_step_leads_out_of_the_numbers) {
  Line line;
  Probe probe(line.spec, line.store, {.batch = 1, .threads = 1, .layers = false});
  const Landscape l = landscape_at(probe, line.store, line.x.data(), line.labels.data(), 1, {1e38, 0.1});
  EXPECT_FALSE(std::isfinite(l.gradient_change));
  EXPECT_FALSE(std::isfinite(l.smoothness));
  EXPECT_FALSE(std::isfinite(l.loss_range()));
}

Json path(double range, double change, double smoothness) {
  Json points = Json::array();
  for (int step = 0; step < 3; ++step) {
    points.push_back({{"step", step},
                      {"loss", 1.0},
                      {"least", 0.5},
                      {"greatest", 2.0},
                      {"range", range},
                      {"change", change},
                      {"relative", 1.0},
                      {"smoothness", smoothness}});
  }
  return {{"points", points}};
}
Verdict verdict_of(const Json& without, const Json& with) {
  const Results results{
      {"rates/given", {{"rate", 0.1}}}, {"path/given/without/seed=1", without}, {"path/given/with/seed=1", with}};
  return landscape_experiment().conclude({.model = "cnn", .seeds = 1}, results).verdict;
}

TEST(LandscapeExperiment, each_verdict_follows_from_its_figures) {
  EXPECT_EQ(verdict_of(path(2, 2, 2), path(1, 1, 1)), Verdict::kHolds);
  EXPECT_EQ(verdict_of(path(2, 2, 2), path(1, 1, 1.9)), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict_of(path(2, 2, 2), path(3, 3, 3)), Verdict::kDoesNotHold);
}

// Networks and repeats: holds where all do.
Verdict verdict_of_four(double last) {
  Results results;
  for (const std::string network : {"shallow", "deep"}) {
    results["rates/" + network] = {{"rate", 0.1}};
    for (const char* seed : {"1", "2"}) {
      const bool is_last = network == "deep" && *seed == '2';
      results["path/" + network + "/without/seed=" + seed] = path(2, 2, 2);
      results["path/" + network + "/with/seed=" + seed] = is_last ? path(last, last, last) : path(1, 1, 1);
    }
  }
  return landscape_experiment().conclude({.seeds = 2}, results).verdict;
}

TEST(LandscapeExperiment, holds_only_where_every_network_and_repeat_does) {
  EXPECT_EQ(verdict_of_four(1), Verdict::kHolds);
  EXPECT_EQ(verdict_of_four(2), Verdict::kHoldsInPart);
}

TEST(LandscapeExperiment, trains_both_networks_with_and_without) {
  data::Splits splits;
  splits.train.example_shape = {1, 8, 8};
  splits.train.count = 160;
  splits.train.values = Tensor(DType::kF32, {160, 1, 8, 8});
  splits.train.class_names = {"left", "right"};
  for (int64_t i = 0; i < 160; ++i) {
    splits.train.labels.push_back(static_cast<int32_t>(i % 2));
    for (int64_t p = 0; p < 64; ++p)
      splits.train.values.values<float>()[static_cast<size_t>(i * 64 + p)] =
          static_cast<float>((i * 7 + p * 3) % 11 + (i % 2) * (p % 8));
  }
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = landscape_experiment();
  Results results;
  for (const Trial& trial : experiment.trials(setup)) results[trial.key] = trial.run(results);
  EXPECT_EQ(results.size(), 6u);
  EXPECT_EQ(results.at("path/deep/with/seed=1")["points"].size(), 4u);
  const Outcome outcome = experiment.conclude(setup, results);
  EXPECT_EQ(outcome.figures.size(), 8u);
  EXPECT_EQ(outcome.charts.size(), 10u);
}

TEST(LandscapeExperiment, points_without_a_number_are_left_out) {
  Json without = path(2, 2, 2);
  without["points"][0]["smoothness"] = nullptr;
  EXPECT_EQ(verdict_of(without, path(1, 1, 1)), Verdict::kHolds);
  without["points"] = Json::array();
  EXPECT_EQ(verdict_of(without, path(1, 1, 1)), Verdict::kDoesNotHold);
}

}  // namespace
}  // namespace evenkeel::lab
