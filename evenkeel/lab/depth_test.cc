#include "evenkeel/lab/depth.h"

#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/lab/experiment.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::lab {
namespace {

// Three layers that double both of their inputs, and one that hands them on to a squared error against (1, 0). From (1, 1): signals 2, 4, 8;
// the error (7, 8) is the gradient by the last layer, and doubles on its way back.
TEST(LayerNorms, of_layers_that_double_are_found_by_hand) {
  ModelSpec spec;
  spec.name = "doubling";
  spec.input = {2};
  spec.classes = 2;
  spec.norm = NormKind::kNone;
  spec.loss = "mse";
  spec.layers.resize(4);
  ParameterStore store;
  for (size_t i = 0; i < 4; ++i) {
    spec.layers[i].type = "linear";
    spec.layers[i].name = "fc" + std::to_string(i + 1);
    spec.layers[i].bias = false;
    if (i < 3) spec.layers[i].out = 2;
  }
  initialize(build_network(spec, Mode::kTrain), 1, &store);
  for (size_t i = 0; i < 4; ++i) {
    const auto weight = store.writable(spec.layers[i].name + ".weight").values<float>();
    weight[0] = weight[3] = i < 3 ? 2 : 1;
    weight[1] = weight[2] = 0;
  }
  Probe probe(spec, store, {.batch = 1, .threads = 1});
  const std::vector<float> x = {1, 1};
  const std::vector<int32_t> labels = {0};
  const LayerNorms norms = layer_norms(probe, x.data(), labels.data(), 1);
  ASSERT_EQ(norms.signal.size(), 3u);
  ASSERT_EQ(norms.gradient.size(), 3u);
  ASSERT_EQ(norms.weight_gradient.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(norms.signal[i], std::pow(2, i + 1), 1e-6);
    EXPECT_NEAR(norms.gradient[i], std::sqrt(113) * std::pow(2, 2 - static_cast<int>(i)), 1e-5);
    EXPECT_NEAR(norms.weight_gradient[i], 4 * std::sqrt(226), 1e-4);  // the same in all of them
  }
}

TEST(GrowthBackwards, is_the_factor_of_a_geometric_series) {
  EXPECT_NEAR(growth_backwards({1.331, 1.21, 1.1, 1}), 1.1, 1e-12);
  EXPECT_NEAR(growth_backwards({1, 8}), 0.125, 1e-12);
}

struct Cells {
  double signal_with, signal_without, gradient_with, accuracy_with, accuracy_without;
};
// Every network of a quick lab with the same answer: layers that grow by the number of decades given, from the last to the first.
Verdict verdict_of(const Cells& cells) {
  data::Splits splits;
  splits.train.example_shape = {3};
  splits.train.class_names = {"a", "b"};  // half way from chance: 0.75
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = depth_experiment();
  const auto layers = [](double decades) {
    Json values = Json::array();
    for (int i = 0; i < 20; ++i) values.push_back(i == 0 ? 1e30 : std::pow(10, -decades * (i - 1) / 18));
    return values;
  };
  Results results;
  for (const Trial& trial : experiment.trials(setup)) {
    const bool with = trial.key.find("/with/") != std::string::npos;
    Json& result = results[trial.key];
    if (trial.key.starts_with("start/")) {
      result = {{"signal", layers(with ? cells.signal_with : cells.signal_without)},
                {"gradient", layers(with ? cells.gradient_with : 0)},
                {"weights", layers(0)}};
    } else {
      result = {{"accuracy", with ? cells.accuracy_with : cells.accuracy_without}, {"rate", 0.1}, {"after", nullptr}};
    }
  }
  return experiment.conclude(setup, results).verdict;
}

TEST(DepthExperiment, each_verdict_follows_from_its_figures) {
  EXPECT_EQ(verdict_of({0.5, 9, 0.5, 0.9, 0.5}), Verdict::kHolds);
  EXPECT_EQ(verdict_of({0.5, 9, 4.0, 0.9, 0.5}), Verdict::kHoldsInPart);  // the gradient spreads
  EXPECT_EQ(verdict_of({0.5, 1, 0.5, 0.9, 0.5}), Verdict::kHoldsInPart);  // the signal does without norm, too
  EXPECT_EQ(verdict_of({0.5, 9, 0.5, 0.7, 0.5}), Verdict::kHoldsInPart);  // learns nothing
  EXPECT_EQ(verdict_of({2.5, 9, 4.0, 0.7, 0.5}), Verdict::kDoesNotHold);
  EXPECT_EQ(verdict_of({2.5, 9, 4.0, 0.9, 0.9}), Verdict::kDoesNotHold);  // everything learns without
}

}  // namespace
}  // namespace evenkeel::lab
