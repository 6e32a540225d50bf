#include "evenkeel/lab/forward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/lab/lab.h"
#include "evenkeel/lab/sets_testing.h"
#include "evenkeel/lab/values.h"

namespace evenkeel::lab {
namespace {

// linear -> norm -> relu -> linear, whose first layer gives the inputs back.
Model identity_model(int64_t width) {
  Model model;
  model.spec.name = "identity";
  model.spec.input = {width};
  model.spec.classes = 2;
  model.spec.layers.resize(2);
  for (LayerSpec& layer : model.spec.layers) layer.type = "linear";
  model.spec.layers[0].out = width;
  initialize(build_network(model.spec, Mode::kTrain), 1, &model.store);
  auto weight = model.store.writable("fc1.weight").values<float>();
  for (int64_t i = 0; i < width * width; ++i) weight[static_cast<size_t>(i)] = i % (width + 1) == 0 ? 1 : 0;
  return model;
}

TEST(LabForward, reads_what_layers_and_norms_receive) {
  Model model = identity_model(2);
  const std::vector<float> x = {1, -4, 3, 4, 5, 0, 7, 0};
  Forward norms(model.spec, model.store, {.batch = 4, .watch = Watch::kNorms});
  norms.run(x.data(), 4);
  ASSERT_EQ(norms.watched(), std::vector<std::string>{"bn1"});
  EXPECT_EQ(norms.moments_of("bn1").at(0).mean, 4);
  EXPECT_EQ(norms.moments_of("bn1").at(0).m2, 20);
  EXPECT_EQ(norms.input_of("bn1").values<float>()[1], -4);

  Forward layers(model.spec, model.store, {.batch = 4, .watch = Watch::kLayers});
  layers.run(x.data(), 4);
  ASSERT_EQ(layers.watched(), std::vector<std::string>{"fc2"});  // the first one receives the examples
  const Tensor input = layers.input_of("fc2");
  EXPECT_EQ(input.shape(), (Shape{4, 2}));
  EXPECT_NEAR(input.values<float>()[6], 3 / std::sqrt(5.0f), 1e-5);
  EXPECT_EQ(input.values<float>()[0], 0);  // below the mean, through relu
  EXPECT_EQ(model.store.at("bn1.running_mean").values<float>()[0], 0);
}

TEST(LabForward, a_flattened_picture_is_no_input_of_a_layer) {
  Model model;
  model.spec = zoo_model("mlp", {1, 2, 2}, 2);
  initialize(build_network(model.spec, Mode::kTrain), 1, &model.store);
  const Forward layers(model.spec, model.store, {.batch = 4});
  EXPECT_EQ(layers.watched(), (std::vector<std::string>{"fc2", "fc3"}));
}

TEST(Spread, is_that_of_each_channel_over_batch_and_space) {
  Tensor input(DType::kF32, {2, 2, 1, 2});
  const std::vector<float> values = {1, 3, 10, 10, 5, 7, 10, 10};
  std::copy(values.begin(), values.end(), input.values<float>().begin());
  const std::vector<ChannelSpread> spread = spread_of(input);
  EXPECT_EQ(spread.at(0).mean, 4);
  EXPECT_DOUBLE_EQ(spread.at(0).sd, std::sqrt(5.0));
  EXPECT_EQ(spread.at(1).sd, 0);
}

TEST(Shift, is_in_units_of_the_standard_deviation) {
  EXPECT_DOUBLE_EQ(shift_between({{1, 2}}, {{5, 2}}), 2);
  EXPECT_DOUBLE_EQ(shift_between({{1, 2}}, {{1, 3}}), 0.5);
  EXPECT_DOUBLE_EQ(shift_between({{0, 2}, {0, 0}}, {{0, 2}, {2, 0}}), 1);  // a channel that does not vary
  EXPECT_EQ(shift_between({{0, 0}}, {{1, 1}}), 0);
}

TEST(RequireNorms, names_the_network_and_the_experiment) {
  ModelSpec spec = zoo_model("mlp", {4}, 2);
  EXPECT_NO_THROW(require_norms(spec, "depth"));
  spec.norm = NormKind::kGroup;
  try {
    require_norms(spec, "depth");
    FAIL();
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("'mlp'"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("'depth'"), std::string::npos);
  }
}

TEST(PopulationStatistics, say_where_a_run_has_diverged) {
  Model model = identity_model(2);
  const data::Dataset set = made_set({2}, 10, 1, [](int64_t i, int64_t, float) { return static_cast<float>(i); });
  model.standardization = {{0, 0}, {1, 1}};
  ASSERT_TRUE(take_population_statistics(model, set, 99, 1));
  EXPECT_EQ(model.store.at("bn1.running_mean").values<float>()[0], 4.5f);
  for (float& value : model.store.writable("fc1.weight").values<float>()) value = 1e38f;
  EXPECT_FALSE(take_population_statistics(model, set, 99, 1));
  model.spec.norm = NormKind::kNone;
  EXPECT_TRUE(take_population_statistics(model, set, 99, 1));
}

TEST(DrawnPart, is_mixed_and_goes_on_where_another_ended) {
  const data::Dataset sorted = made_set({1}, 100, 1, [](int64_t i, int64_t, float) { return static_cast<float>(i); });
  const data::Dataset part = drawn_part(sorted, 40), rest = drawn_part(sorted, 99, 40);
  ASSERT_EQ(part.count, 40);
  ASSERT_EQ(rest.count, 60);
  std::set<float> seen(part.values.values<float>().begin(), part.values.values<float>().end());
  EXPECT_GT(*seen.rbegin(), 60);
  seen.insert(rest.values.values<float>().begin(), rest.values.values<float>().end());
  EXPECT_EQ(seen.size(), 100u);
  EXPECT_EQ(drawn_part(sorted, 5, 200).count, 0);
}

TEST(LabValues, what_is_not_finite_is_null_and_read_as_nothing) {
  const Json result{{"good", number(2)}, {"bad", number(NAN)}, {"worse", number(INFINITY)}};
  EXPECT_EQ(number_in(result, "good"), 2);
  EXPECT_TRUE(result["bad"].is_null());
  EXPECT_FALSE(number_in(result, "bad"));
  EXPECT_FALSE(number_in(result, "worse"));
  EXPECT_FALSE(number_in(result, "missing"));
}

TEST(LabValues, the_best_rate_is_that_of_the_greatest_score) {
  Results earlier;
  earlier["rate/0.1"] = {{"score", 0.5}};
  earlier["rate/0.3"] = {{"score", 0.7}};
  earlier["rate/1"] = {{"score", nullptr}};
  EXPECT_EQ(best_rate(earlier, "rate/", {0.1, 0.3, 1}), 0.3);
  EXPECT_EQ(best_rate(earlier, "rate/", {1, 0.1}), 0.1);
  EXPECT_EQ(best_rate(earlier, "rate/", {1}), 1);
}

TEST(LabValues, a_point_has_its_median_and_its_spread) {
  report::Series series;
  add_point(series, 5, {3, 1, 2});
  add_point(series, 6, {});
  EXPECT_EQ(series.x, std::vector<double>{5});
  EXPECT_EQ(series.y, std::vector<double>{2});
  EXPECT_EQ(series.low, std::vector<double>{1});
  EXPECT_EQ(series.high, std::vector<double>{3});
}

}  // namespace
}  // namespace evenkeel::lab
