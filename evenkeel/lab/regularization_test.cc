#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/lab/batch_noise.h"
#include "evenkeel/lab/experiment.h"
#include "evenkeel/lab/sets_testing.h"

namespace evenkeel::lab {
namespace {

data::Dataset noise_set(const Shape& shape, int64_t count) {
  return made_set(shape, count, 3, [](int64_t, int64_t, float random) { return random; });
}
Model untrained(const std::string& name, const data::Dataset& set) {
  Model model;
  model.spec = zoo_model(name, set.example_shape, 2);
  model.standardization = data::standardization_of(set);
  initialize(build_network(model.spec, Mode::kTrain), 1, &model.store);
  return model;
}

TEST(BatchNoise, of_a_dense_layer_is_sigma_over_the_root_of_the_batch) {
  const data::Dataset set = noise_set({8}, 400);
  Model model = untrained("mlp", set);
  NoiseMeter meter(model, set, {.norm = "bn1"});
  EXPECT_EQ(meter.population(), 400);
  for (const int64_t batch : {8, 32, 128}) {
    const Noise noise = meter.measure(batch, 300);
    const double expected = 1 / std::sqrt(static_cast<double>(batch));
    EXPECT_NEAR(noise.predicted_mean / expected, 1, 1e-9);
    EXPECT_NEAR(noise.naive_mean / expected, 1, 1e-9);
    EXPECT_NEAR(noise.mean / expected, 1, 0.1);
    EXPECT_NEAR(noise.variance / noise.predicted_variance, 1, 0.2);
  }
}

TEST(BatchNoise, of_pictures_of_one_grey_each_is_that_of_one_value_each) {
  const data::Dataset set =
      made_set({1, 8, 8}, 200, 4, [](int64_t i, int64_t, float) { return static_cast<float>(i * 37 % 101) / 101; });
  Model model = untrained("cnn", set);
  for (float& weight : model.store.writable("conv1.weight").values<float>()) weight = 0;
  for (size_t c = 0; c < 32; ++c) model.store.writable("conv1.weight").values<float>()[c * 9 + 4] = 1;  // as it is
  NoiseMeter meter(model, set, {.norm = "bn1"});
  const Noise noise = meter.measure(16, 300);
  EXPECT_NEAR(noise.predicted_mean, 0.25, 1e-6);
  EXPECT_NEAR(noise.naive_mean, 0.25 / 8, 1e-9);
  EXPECT_NEAR(noise.mean, 0.25, 0.03);
  // The variance of a batch of one picture is 0: nothing of the spread between pictures is in it.
  EXPECT_NEAR(meter.measure(1, 50).variance, 0, 1e-9);
}

struct Pretend {
  double ratio_mean = 1, ratio_variance = 1;
  double small_gap = 0.3, whole_gap = 0.5;
  double small_accuracy = 0.85, whole_accuracy = 0.8;
  double norm_dropout = 0.805, none_dropout = 0.79;  // against 0.8 and 0.75
};

Results results_of(const LabSetup& setup, const Pretend& p) {
  Results results;
  for (const Trial& trial : regularization_experiment().trials(setup)) {
    const std::string& key = trial.key;
    const auto has = [&](const char* part) { return key.find(part) != std::string::npos; };
    if (has("noise/")) {
      const Json points = Json::array({{{"batch", 16},
                                        {"mean", 0.25 * p.ratio_mean},
                                        {"variance", 0.3 * p.ratio_variance},
                                        {"predicted_mean", 0.25},
                                        {"predicted_variance", 0.3},
                                        {"naive_mean", 0.25}}});
      results[key] = {{"first", points}, {"last", points}};
    } else if (has("rate/")) {
      results[key] = {{"score", 0.5}};
    } else {
      Json one{{"rate", 0.1}, {"gap", p.whole_gap}, {"train_accuracy", 1.0}, {"test_accuracy", p.whole_accuracy}};
      if (has("ghost=16/")) {
        one["gap"] = p.small_gap;
        one["test_accuracy"] = p.small_accuracy;
      } else if (has("gap/none/")) {
        one["test_accuracy"] = has("dropout") ? p.none_dropout : 0.75;
      } else if (has("ghost=0/")) {
        one["test_accuracy"] = has("dropout") ? p.norm_dropout : 0.8;
      }
      results[key] = one;
    }
  }
  return results;
}

TEST(Regularization, each_verdict_follows_from_its_figures) {
  data::Splits splits;
  splits.train = noise_set({8}, 40);
  splits.test = noise_set({8}, 20);
  const LabSetup setup{.splits = &splits, .seeds = 2};
  const auto verdict = [&](const Pretend& p) {
    return regularization_experiment().conclude(setup, results_of(setup, p)).verdict;
  };
  EXPECT_EQ(verdict({}), Verdict::kHolds);
  EXPECT_EQ(verdict({.ratio_mean = 1.2}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.ratio_variance = 0.7}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.small_gap = 0.6}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.small_accuracy = 0.79}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.norm_dropout = 0.86}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.small_gap = 0.6, .small_accuracy = 0.79}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.small_gap = 0.6, .small_accuracy = 0.79, .norm_dropout = 0.86}), Verdict::kDoesNotHold);
}

TEST(Regularization, dropout_is_needed_less_for_every_seed_and_by_a_margin) {
  data::Splits splits;
  splits.train = noise_set({8}, 40);
  splits.test = noise_set({8}, 20);
  const LabSetup setup{.splits = &splits, .seeds = 2};
  const auto outcome_of = [&](const Results& results) { return regularization_experiment().conclude(setup, results); };
  EXPECT_EQ(outcome_of(results_of(setup, {.none_dropout = 0.76})).verdict, Verdict::kHolds);  // half a point more
  EXPECT_EQ(outcome_of(results_of(setup, {.none_dropout = 0.757})).verdict, Verdict::kHoldsInPart);
  Results results = results_of(setup, {});
  results["gap/none/batch=128/ghost=0/dropout/seed=2"]["test_accuracy"] = 0.75;
  const Outcome outcome = outcome_of(results);
  EXPECT_EQ(outcome.verdict, Verdict::kHoldsInPart) << "one seed of the two says otherwise";
  EXPECT_NE(outcome.answer.find("+0.5 [+0.5 to +0.5] points with norm and +2.0 [+0.0 to +4.0] without"),
            std::string::npos)
      << outcome.answer;
}

TEST(Regularization, gaps_are_compared_within_a_seed) {
  data::Splits splits;
  splits.train = noise_set({8}, 40);
  splits.test = noise_set({8}, 20);
  const LabSetup setup{.splits = &splits, .seeds = 2};
  Results results = results_of(setup, {});
  // One of each is missing, and the two that are left are of different seeds.
  results["gap/norm/batch=128/ghost=16/plain/seed=2"]["gap"] = nullptr;
  results["gap/norm/batch=128/ghost=128/plain/seed=1"]["gap"] = nullptr;
  EXPECT_EQ(regularization_experiment().conclude(setup, results).verdict, Verdict::kHoldsInPart);
}

TEST(Regularization, a_run_that_diverged_narrows_no_gap) {
  data::Splits splits;
  splits.train = noise_set({8}, 40);
  splits.test = noise_set({8}, 20);
  const LabSetup setup{.splits = &splits, .seeds = 2};
  Results results = results_of(setup, {});
  results["gap/norm/batch=128/ghost=16/plain/seed=2"] = {{"rate", 0.1}, {"score", nullptr}};
  EXPECT_EQ(regularization_experiment().conclude(setup, results).verdict, Verdict::kHoldsInPart);
}

TEST(Regularization, trials_fit_together) {
  data::Splits splits;
  const auto value = [](int64_t i, int64_t, float random) { return random * 4 - (i % 2 == 0 ? 2.5f : 1.5f); };
  splits.train = made_set({6}, 64, 1, value);
  splits.test = made_set({6}, 30, 2, value);
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = regularization_experiment();
  Results results = results_of(setup, {});
  for (const Trial& trial : experiment.trials(setup)) {
    if (trial.key.starts_with("rate/") && !trial.key.ends_with("/0.1")) continue;
    results[trial.key] = trial.run(results);
  }
  const Outcome outcome = experiment.conclude(setup, results);
  EXPECT_EQ(results.at("noise/dense/seed=1")["first"].size(), 2u);  // batches of 8 and 32
  const Json& one = results.at("gap/none/batch=16/ghost=0/dropout/seed=1");
  EXPECT_TRUE(one["gap"].is_number());
  EXPECT_GT(one["train_accuracy"].get<double>(), 0.5);
  // In batches of 16, dropout is the only difference of these two.
  EXPECT_NE(one["gap"], results.at("gap/none/batch=16/ghost=0/plain/seed=1")["gap"]);
  // All examples of a batch share statistics: the same as no ghosts.
  EXPECT_EQ(results.at("gap/norm/batch=128/ghost=128/plain/seed=1")["gap"],
            results.at("gap/norm/batch=128/ghost=0/plain/seed=1")["gap"]);
  EXPECT_NE(results.at("gap/norm/batch=128/ghost=16/plain/seed=1")["gap"],
            results.at("gap/norm/batch=128/ghost=0/plain/seed=1")["gap"]);
  EXPECT_EQ(outcome.tables.at(0).rows.size(), 12u);
}

}  // namespace
}  // namespace evenkeel::lab
