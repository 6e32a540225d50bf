#include "evenkeel/train/probe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "evenkeel/core/rng.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel {
namespace {

// conv -> bn -> relu -> conv without a norm -> tanh -> linear.
ModelSpec small_spec() {
  ModelSpec spec;
  spec.name = "small";
  spec.input = {2, 5, 4};
  spec.classes = 3;
  spec.layers.resize(4);
  spec.layers[0].type = spec.layers[1].type = "conv";
  spec.layers[0].out = 4;
  spec.layers[1].out = 3;
  spec.layers[0].padding = spec.layers[1].padding = 1;
  spec.layers[1].norm = NormKind::kNone;
  spec.layers[1].activation = Activation{ActivationKind::kTanh};
  spec.layers[2].type = "flatten";
  spec.layers[3].type = "linear";
  spec.layers[3].name = "fc";
  return spec;
}

struct Example {
  ModelSpec spec = small_spec();
  ParameterStore store;
  std::vector<float> x;
  std::vector<int32_t> labels = {0, 1, 2, 1, 0, 2};
  int64_t n = 6;

  Example() {
    initialize(build_network(spec, Mode::kTrain), 7, &store);
    RandomStream random(3, RandomUse::kProbe);
    x.resize(static_cast<size_t>(n * element_count(spec.input)));
    for (float& value : x) value = random.next_uniform() * 2 - 1;
  }
};

TEST(Probe, sees_what_comes_into_norms_and_activations) {
  Example e;
  Probe probe(e.spec, e.store, {.batch = 8, .threads = 1});
  probe.run(e.x.data(), e.labels.data(), e.n);
  ASSERT_EQ(probe.layers().size(), 2u);
  EXPECT_EQ(probe.layers()[0].name, "bn1");
  EXPECT_TRUE(probe.layers()[0].is_norm);
  EXPECT_TRUE(probe.layers()[0].has_moments);
  EXPECT_FALSE(probe.layers()[1].is_norm);
  EXPECT_FALSE(probe.layers()[1].has_moments);
  const Tensor input = probe.input_of("bn1");
  EXPECT_EQ(input.shape(), (Shape{6, 4, 5, 4}));
  EXPECT_EQ(probe.input_of(probe.layers()[1].name).shape(), (Shape{6, 3, 5, 4}));
  // Channel 2 by another way than the step's.
  double sum = 0, squares = 0;
  for (size_t i = 0; i < 6; ++i) {
    for (size_t p = 0; p < 20; ++p) sum += static_cast<double>(input.values<float>()[(i * 4 + 2) * 20 + p]);
  }
  const double mean = sum / 120;
  for (size_t i = 0; i < 6; ++i) {
    for (size_t p = 0; p < 20; ++p)
      squares += std::pow(static_cast<double>(input.values<float>()[(i * 4 + 2) * 20 + p]) - mean, 2);
  }
  const Moments moments = probe.moments_of("bn1").at(2);
  EXPECT_EQ(moments.count, 120);
  EXPECT_NEAR(moments.mean, mean, 1e-9);
  EXPECT_NEAR(moments.m2, squares, 1e-6 * squares);
}

TEST(Probe, gradients_are_the_differences_of_the_loss) {
  Example e;
  Probe probe(e.spec, e.store, {.batch = 6, .threads = 1});
  probe.run(e.x.data(), e.labels.data(), e.n);
  EXPECT_EQ(probe.parameters(), (std::vector<std::string>{"conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight",
                                                          "conv2.bias", "fc.weight", "fc.bias"}));
  double squares = 0;
  for (const std::string& name : probe.parameters()) squares += squared_norm(probe.gradient(name));
  EXPECT_EQ(probe.squared_gradient_norm(), squares);
  for (const std::string name : {"conv1.weight", "bn1.weight", "conv2.bias", "fc.weight"}) {
    const double gradient = static_cast<double>(probe.gradient(name).values<float>()[1]);
    const float at = e.store.at(name).values<float>()[1],
                step = 1e-3f;  // less than it takes to get a ReLU across its kink
    const auto loss_at = [&](float value) {
      e.store.writable(name).values<float>()[1] =
          value;  // anew each time: a change that the store is not told of is not seen
      return probe.run(e.x.data(), e.labels.data(), e.n);
    };
    const double above = loss_at(at + step), below = loss_at(at - step);
    loss_at(at);
    EXPECT_NEAR(gradient, (above - below) / (2 * static_cast<double>(step)), 2e-3 * std::abs(gradient) + 2e-5) << name;
  }
}

// A bias is added to every value of a channel: its gradient is the sum of theirs. Behind a norm's statistics that sum is 0.
TEST(Probe, gradients_of_the_inputs_add_up_to_those_of_the_bias_in_front) {
  Example e;
  e.spec.layers[0].bias = true;
  e.store = ParameterStore();
  initialize(build_network(e.spec, Mode::kTrain), 7, &e.store);
  Probe probe(e.spec, e.store, {.batch = 6, .threads = 1});
  probe.run(e.x.data(), e.labels.data(), e.n);
  for (const auto& [layer, bias] : {std::pair{"bn1", "conv1.bias"}, std::pair{"conv2.activation", "conv2.bias"}}) {
    const Tensor gradient = probe.input_gradient_of(layer), expected = probe.gradient(bias);
    ASSERT_EQ(gradient.shape(), probe.input_of(layer).shape());
    EXPECT_GT(squared_norm(gradient), 0);
    const auto channels = static_cast<size_t>(gradient.shape()[1]), pixels = size_t{20};
    for (size_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (size_t i = 0; i < 6; ++i) {
        for (size_t p = 0; p < pixels; ++p)
          sum += static_cast<double>(gradient.values<float>()[(i * channels + c) * pixels + p]);
      }
      EXPECT_NEAR(sum, static_cast<double>(expected.values<float>()[c]), 1e-6) << layer;
    }
  }
}

TEST(Probe, changes_nothing) {
  Example e;
  ParameterStore before;
  for (const auto& [name, tensor] : e.store.tensors()) before.add(name, tensor.clone());
  Probe probe(e.spec, e.store, {.batch = 6, .threads = 2});
  const double loss = probe.run(e.x.data(), e.labels.data(), e.n);
  EXPECT_EQ(probe.run(e.x.data(), e.labels.data(), e.n), loss);
  for (const auto& [name, tensor] : e.store.tensors()) {
    EXPECT_EQ(std::memcmp(tensor.raw(), before.at(name).raw(), tensor.bytes()), 0) << name;
  }
}

TEST(Probe, without_layers_it_has_loss_and_gradients) {
  Example e;
  Probe all(e.spec, e.store, {.batch = 6, .threads = 1});
  Probe few(e.spec, e.store, {.batch = 6, .threads = 1, .layers = false});
  EXPECT_EQ(few.run(e.x.data(), e.labels.data(), e.n), all.run(e.x.data(), e.labels.data(), e.n));
  EXPECT_TRUE(few.layers().empty());
  EXPECT_EQ(few.squared_gradient_norm(), all.squared_gradient_norm());
}

TEST(Percentiles, are_those_of_the_sorted_values) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Percentiles p = percentiles_of(values);
  EXPECT_EQ(p.least, 0);
  EXPECT_EQ(p.p15, 15);
  EXPECT_EQ(p.p50, 50);
  EXPECT_EQ(p.p85, 85);
  EXPECT_EQ(p.greatest, 100);
}

TEST(Percentiles, extremes_are_of_all_values_where_a_part_is_sorted) {
  std::vector<float> values(static_cast<size_t>(kMostSampled) * 3 + 1);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 1000);
  values[1] = -5;
  values[values.size() - 1] = 5000;
  const Percentiles p = percentiles_of(values.data(), static_cast<int64_t>(values.size()));
  EXPECT_EQ(p.least, -5);
  EXPECT_EQ(p.greatest, 5000);
  EXPECT_NEAR(p.p50, 500, 10);
}

TEST(Percentiles, of_nothing_or_of_what_is_not_finite_are_nan) {
  EXPECT_TRUE(std::isnan(percentiles_of(std::vector<double>()).p50));
  EXPECT_TRUE(std::isnan(percentiles_of({1, std::nan(""), 2}).least));
}

}  // namespace
}  // namespace evenkeel
