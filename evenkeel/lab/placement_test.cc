#include "evenkeel/lab/placement.h"

#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/core/rng.h"
#include "evenkeel/lab/experiment.h"

namespace evenkeel::lab {
namespace {

ModelSpec two_layers(bool bias, NormPlacement placement) {
  ModelSpec spec;
  spec.name = "two-layers";
  spec.input = {3};
  spec.classes = 2;
  spec.placement = placement;
  spec.layers.resize(2);
  for (LayerSpec& layer : spec.layers) layer.type = "linear";
  spec.layers[0].out = 5;
  if (bias) spec.layers[0].bias = true;
  return spec;
}

BiasGradient bias_gradient_of(NormPlacement placement) {
  const ModelSpec with = two_layers(true, placement);
  ModelSpec without = two_layers(false, placement);
  without.layers[0].bias = false;
  ParameterStore store;
  initialize(build_network(with, Mode::kTrain), 3, &store);
  std::vector<float> x;
  std::vector<int32_t> labels;
  RandomStream random(1, RandomUse::kProbe);
  for (int i = 0; i < 64; ++i) {
    labels.push_back(i % 2);
    for (int f = 0; f < 3; ++f) x.push_back(2 * random.next_uniform() - 1 + static_cast<float>(i % 2));
  }
  Probe probe(with, store, {.batch = 64, .threads = 1});
  probe.run(x.data(), labels.data(), 64);
  return bias_gradient(probe, with, without);
}

TEST(BiasGradient, is_rounding_in_front_of_a_norm_and_none_in_front_of_an_activation) {
  const BiasGradient before = bias_gradient_of(NormPlacement::kBefore), after = bias_gradient_of(NormPlacement::kAfter);
  EXPECT_EQ(before.count, 5);
  EXPECT_GT(before.betas, 1e-3);
  EXPECT_LT(before.biases, 1e-5 * before.betas);
  EXPECT_EQ(after.count, 5);
  EXPECT_GT(after.biases, 1e-3 * after.betas);
}

TEST(HoldAffine, puts_back_what_it_is_asked_to) {
  const ModelSpec spec = two_layers(false, NormPlacement::kBefore);
  ParameterStore store;
  initialize(build_network(spec, Mode::kTrain), 3, &store);
  const auto set = [&](const std::string& name, float value) { store.writable(name).values<float>()[4] = value; };
  const auto get = [&](const std::string& name) { return store.at(name).values<float>()[4]; };
  set("bn1.weight", 7);
  set("bn1.bias", 8);
  hold_affine(spec, store, true, false);
  EXPECT_EQ(get("bn1.weight"), 1);
  EXPECT_EQ(get("bn1.bias"), 8);
  set("bn1.weight", 7);
  hold_affine(spec, store, false, true);
  EXPECT_EQ(get("bn1.weight"), 7);
  EXPECT_EQ(get("bn1.bias"), 0);
}

Verdict verdict_of(const std::vector<double>& before, const std::vector<double>& after,
                   const std::vector<double>& plain, double ratio) {
  data::Splits splits;
  splits.train.class_names = {"a", "b"};
  const LabSetup setup{.splits = &splits, .seeds = static_cast<int64_t>(before.size())};
  Results results;
  for (size_t i = 0; i < before.size(); ++i) {
    const std::string seed = "/seed=" + std::to_string(i + 1);
    const auto put = [&](const std::string& key, double test) {
      results[key + seed] = {{"rate", 0.1}, {"test", test}};
    };
    put("before", before[i]);
    put("after", after[i]);
    put("plain", plain[i]);
    for (const char* other : {"gamma", "beta", "bias", "none"}) put(other, 0.8);
    results["bias" + seed]["start"] = {{"count", 4}, {"ratio", 1e-7}};
    results["bias" + seed]["end"] = {{"count", 4}, {"ratio", ratio}};
  }
  return placement_experiment().conclude(setup, results).verdict;
}

TEST(PlacementExperiment, each_verdict_follows_from_its_figures) {
  EXPECT_EQ(verdict_of({0.9}, {0.8}, {0.85}, 1e-6), Verdict::kHolds);
  EXPECT_EQ(verdict_of({0.9}, {0.91}, {0.85}, 1e-6), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict_of({0.9}, {0.8}, {0.85}, 0.1), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict_of({0.9}, {0.897}, {0.897}, 0.1), Verdict::kDoesNotHold);  // less than half a point
}

TEST(PlacementExperiment, half_a_point_is_enough) {
  ASSERT_LT(100 * 0.565 - 100 * 0.56, 0.5);
  EXPECT_EQ(verdict_of({0.565}, {0.56}, {0.56}, 1e-4), Verdict::kHolds);
}

TEST(PlacementExperiment, better_is_better_in_every_repeat) {
  EXPECT_EQ(verdict_of({0.9, 0.9, 0.9}, {0.8, 0.8, 0.8}, {0.8, 0.8, 0.8}, 1e-6), Verdict::kHolds);
  EXPECT_EQ(verdict_of({0.9, 0.9, 0.9}, {0.8, 0.8, 0.901}, {0.8, 0.8, 0.8}, 1e-6), Verdict::kHoldsInPart);
}

}  // namespace
}  // namespace evenkeel::lab
