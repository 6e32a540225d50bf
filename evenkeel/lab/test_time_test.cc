#include <gtest/gtest.h>

#include "evenkeel/lab/experiment.h"
#include "evenkeel/lab/sets_testing.h"
#include "evenkeel/lab/step_average.h"
#include "evenkeel/lab/training.h"

namespace evenkeel::lab {
namespace {

data::Splits clouds() {
  data::Splits splits;
  const auto value = [](int64_t i, int64_t, float random) { return random * 2 - 1 + (i % 2 == 0 ? 2.0f : -2.0f); };
  splits.train = made_set({3}, 60, 1, value);
  splits.test = made_set({3}, 40, 2, value);
  return splits;
}

TEST(StepAverage, is_the_running_average_that_training_keeps) {
  const data::Splits splits = clouds();
  ModelSpec spec = zoo_model("mlp", {3}, 2);
  for (const bool cumulative : {false, true}) {
    spec.norm_options.cumulative = cumulative;
    spec.norm_options.new_batch_weight = 0.1;
    Training kept({.spec = spec, .batch = 20, .steps = 7, .threads = 1}, splits);
    while (kept.step()) {
    }
    spec.norm_options.cumulative = false;
    spec.norm_options.new_batch_weight = 1;
    Training run({.spec = spec, .batch = 20, .steps = 7, .threads = 1}, splits);
    const auto held = [](Training& t) { return running_statistics_of(t.model().spec, t.model().store); };
    StepAverage average(cumulative ? RunningStatistics::kCumulative : RunningStatistics::kEma, 0.1, held(run));
    while (run.step()) average.add(held(run));
    const std::vector<ChannelStatistics> expected = held(kept), made = average.result();
    ASSERT_EQ(made.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(made[i].name, expected[i].name);
      EXPECT_EQ(made[i].batches, 7);
      for (const size_t c : {0u, 100u, 511u}) {
        EXPECT_NEAR(made[i].mean[c], expected[i].mean[c], 1e-5);
        EXPECT_NEAR(made[i].var[c], expected[i].var[c], 1e-5);
      }
    }
  }
}

struct Pretend {
  double end_ema = 0.895, early_ema = 0.3, single = 0.4, twice = 0.1;
  double early_population = 0.6;  // 0.9 at the end
};
Results results_of(const LabSetup& setup, const Pretend& p) {
  const auto look = [](int64_t step, double population, double ema, const Json& single) {
    return Json{{"step", step},
                {"ema 0.5", ema},
                {"ema 0.1", ema},
                {"ema 0.01", ema},
                {"cumulative", ema},
                {"mean of batches", ema},
                {"population", population},
                {"batch of 256", population},
                {"single example", single}};
  };
  Results results;
  for (const Trial& trial : test_time_experiment().trials(setup)) {
    if (trial.key.starts_with("dense/")) {
      results[trial.key] = {{"refusal", "no"}, {"different answers", 1}, {"running", 0.8}, {"twice", p.twice}};
    } else {
      results[trial.key] = {{"looks", Json::array({look(5, p.early_population, p.early_ema, p.single),
                                                   look(200, 0.9, p.end_ema, p.single)})},
                            {"test batches", Json::array({{{"size", 1}, {"accuracy", p.single}}})}};
    }
  }
  return results;
}

TEST(TestTime, each_verdict_follows_from_its_figures) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 2};
  const auto verdict = [&](const Pretend& p) {
    return test_time_experiment().conclude(setup, results_of(setup, p)).verdict;
  };
  EXPECT_EQ(verdict({}), Verdict::kHolds);
  EXPECT_EQ(verdict({.end_ema = 0.88}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.early_ema = 0.59}), Verdict::kHoldsInPart);
  ASSERT_GT(0.515, 0.565 - 0.05);  // 5 points behind in decimal numbers
  EXPECT_EQ(verdict({.early_ema = 0.515, .early_population = 0.565}), Verdict::kHolds);
  EXPECT_EQ(verdict({.early_ema = 0, .early_population = 0.4}), Verdict::kHoldsInPart);  // knows too little to tell
  EXPECT_EQ(verdict({.single = 0.85}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.twice = 0.75}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.end_ema = 0.88, .early_ema = 0.59, .single = 0.85}), Verdict::kDoesNotHold);
}

TEST(TestTime, a_network_that_refuses_a_single_example_is_judged_by_the_doubled_ones) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 1};
  Results results = results_of(setup, {});
  for (auto& [key, result] : results) {
    if (!result.contains("looks")) continue;
    for (Json& look : result["looks"]) look["single example"] = nullptr;
    result["test batches"][0]["accuracy"] = nullptr;
  }
  const Outcome outcome = test_time_experiment().conclude(setup, results);
  EXPECT_EQ(outcome.verdict, Verdict::kHolds);
  EXPECT_NE(outcome.answer.find("refused in this network"), std::string::npos) << outcome.answer;
  EXPECT_EQ(outcome.answer.find("convolution"), std::string::npos) << "these are tables";
  EXPECT_EQ(outcome.charts.at(2).note.find("convolution"), std::string::npos);
}

TEST(TestTime, runs_that_diverged_decide_nothing) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 1};
  Results results = results_of(setup, {});
  for (auto& [key, result] : results) {
    if (result.contains("looks")) result["looks"] = Json::array();
  }
  const Outcome outcome = test_time_experiment().conclude(setup, results);
  EXPECT_EQ(outcome.verdict, Verdict::kHoldsInPart);  // of the dense network there are answers
  EXPECT_NE(outcome.answer.find("diverged"), std::string::npos);
}

TEST(TestTime, trials_fit_together) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = test_time_experiment();
  Results results;
  for (const Trial& trial : experiment.trials(setup)) results[trial.key] = trial.run(results);
  // One example given twice is beta behind every norm: one answer for all, right for one of two classes.
  const Json& dense = results.at("dense/seed=1");
  EXPECT_EQ(dense["different answers"], 1);
  EXPECT_EQ(dense["twice"], 0.5);
  EXPECT_EQ(dense["running"], 1);
  EXPECT_NE(dense["refusal"].get<std::string>(), "");
  const Json& run = results.at("train/batch=128/seed=1");
  ASSERT_EQ(run["looks"].size(), 4u);
  EXPECT_EQ(run["looks"][3]["step"], 100);
  EXPECT_EQ(run["looks"][3]["population"], 1);
  EXPECT_EQ(run["looks"][3]["ema 0.1"], 1);
  EXPECT_TRUE(run["looks"][3]["single example"].is_null());
  const Outcome outcome = experiment.conclude(setup, results);
  EXPECT_EQ(outcome.charts.at(0).series.size(), 8u);
  EXPECT_EQ(outcome.charts.at(2).series.at(0).x, (std::vector<double>{2, 4, 8, 16}));
}

}  // namespace
}  // namespace evenkeel::lab
