#include <gtest/gtest.h>

#include <fmt/format.h>

#include "evenkeel/lab/clouds_testing.h"
#include "evenkeel/lab/experiment.h"

namespace evenkeel::lab {
namespace {

// Accuracy 0.805 from step `at` on, 0.1 before it; a step takes `seconds`.
Json curve(int64_t at, double seconds, double swing = 1) {
  Json json{{"network", "net"},
            {"steps", Json::array()},
            {"seconds", Json::array()},
            {"accuracy", Json::array()},
            {"diverged", false},
            {"inputs", {{"unit", 0}, {"swing", swing}, {"steps", {0}}, {"low", {-1}}, {"median", {0}}, {"high", {1}}}}};
  for (int64_t step = 0; step <= 100; step += 10) {
    json["steps"].push_back(step);
    json["seconds"].push_back(seconds * static_cast<double>(step));
    json["accuracy"].push_back(step >= at ? 0.805 : 0.1);
  }
  return json;
}
constexpr int64_t kNever = 1000;

// Without the norm 0.805 at step 40 in steps of 1 ms, for both networks and at all rates.
Results results_of(int64_t sigmoid_at, int64_t network_at, double seconds, double swing = 0.5) {
  Results results;
  for (const std::string subject : {"sigmoid", "network"}) {
    const int64_t at = subject == "sigmoid" ? sigmoid_at : network_at;
    for (const double rate : {0.1, 0.3, 1.0, 3.0}) {
      results[fmt::format("{}/none/rate={}", subject, rate)] = curve(40, 1e-3);
      results[fmt::format("{}/batch/rate={}", subject, rate)] = curve(at, seconds);
    }
    results[subject + "/none/seed=1"] = curve(40, 1e-3);
    results[subject + "/batch/seed=1"] = curve(at, seconds, swing);
  }
  return results;
}
Outcome outcome_of(const Results& results) { return speed_experiment().conclude({.seeds = 1, .quick = true}, results); }

TEST(SpeedExperiment, each_verdict_follows_from_its_figures) {
  EXPECT_EQ(outcome_of(results_of(10, 20, 1e-3)).verdict, Verdict::kHolds);
  EXPECT_EQ(outcome_of(results_of(10, 20, 5e-3)).verdict, Verdict::kHoldsInPart);  // fewer steps, but not sooner
  EXPECT_EQ(outcome_of(results_of(10, 30, 1e-3)).verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(outcome_of(results_of(60, 10, 1e-3)).verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(outcome_of(results_of(40, 40, 1e-3)).verdict, Verdict::kHoldsInPart);       // steadier only
  EXPECT_EQ(outcome_of(results_of(10, 20, 1e-3, 1.5)).verdict, Verdict::kHoldsInPart);  // sooner only
  EXPECT_EQ(outcome_of(results_of(40, 40, 1e-3, 1.5)).verdict, Verdict::kDoesNotHold);
  EXPECT_EQ(outcome_of(results_of(kNever, kNever, 1e-3, 1.5)).verdict, Verdict::kDoesNotHold);
}

TEST(SpeedExperiment, inputs_have_to_be_steadier_for_every_seed) {
  Results results = results_of(10, 20, 1e-3);
  for (const std::string subject : {"sigmoid", "network"}) {
    results[subject + "/none/seed=2"] = curve(40, 1e-3);
    results[subject + "/batch/seed=2"] = curve(10, 1e-3, 0.4);
  }
  const auto conclude = [&] { return speed_experiment().conclude({.seeds = 2, .quick = true}, results); };
  EXPECT_EQ(conclude().verdict, Verdict::kHolds);
  EXPECT_EQ(conclude().figures.at(5).values, (std::vector<double>{0.5, 0.4}));
  results["sigmoid/batch/seed=2"]["inputs"]["swing"] = 1.2;
  EXPECT_EQ(conclude().verdict, Verdict::kHoldsInPart);
  results["sigmoid/batch/seed=2"]["inputs"] = nullptr;  // came to values that are not finite at once
  EXPECT_EQ(conclude().verdict, Verdict::kHoldsInPart);
}

// All of its steps, and all of the time that they would have taken.
TEST(SpeedExperiment, a_run_that_diverged_is_charged_the_seconds_of_all_its_steps) {
  Results results = results_of(10, 20, 1e-3);
  Json& diverged = results["sigmoid/none/seed=1"];
  diverged["diverged"] = true;
  diverged["steps"] = {0, 10, 20};
  diverged["seconds"] = {0.0, 0.01, 0.02};
  diverged["accuracy"] = {0.1, 0.1, 0.1};
  const Outcome outcome = outcome_of(results);
  EXPECT_NEAR(outcome.figures.at(0).median(), 100, 1e-9);
  EXPECT_NEAR(outcome.figures.at(1).median(), 100, 1e-9);  // 1000 steps of 1 ms over 10
}

TEST(SpeedExperiment, ratios_count_runs_that_miss_the_target) {
  Results results = results_of(10, 20, 5e-3);
  Outcome outcome = outcome_of(results);
  EXPECT_NEAR(outcome.figures.at(0).median(), 4, 1e-9);
  EXPECT_NEAR(outcome.figures.at(1).median(), 0.8, 1e-9);
  EXPECT_NEAR(outcome.figures.at(2).median(), 2, 1e-9);
  EXPECT_EQ(outcome.charts.at(0).series.at(2).y.at(0), 0.8);  // 0.805 in whole percent
  results["sigmoid/none/seed=1"] = curve(kNever, 1e-3);       // counts with all its steps
  results["network/batch/seed=1"] = curve(kNever, 1e-3);
  outcome = outcome_of(results);
  EXPECT_NEAR(outcome.figures.at(0).median(), 100, 1e-9);  // 1000 steps of the quick lab over 10
  EXPECT_EQ(outcome.figures.at(2).median(), 0);
  EXPECT_EQ(outcome.answer.find("net: 80 % is reached in at least 100 times fewer"), 0u) << outcome.answer;
  EXPECT_EQ(outcome.tables.at(0).rows.at(3).at(3), "not reached");
  EXPECT_NE(outcome.answer.find("times fewer seconds with the norm. "), std::string::npos) << outcome.answer;
  EXPECT_EQ(outcome.answer.find(" 0 times"), std::string::npos) << outcome.answer;
  results["network/none/seed=1"] = curve(kNever, 1e-3);
  EXPECT_NE(outcome_of(results).answer.find("is reached neither with the norm nor without it."), std::string::npos);
}

TEST(SpeedExperiment, the_best_rate_takes_the_fewest_steps_to_the_target) {
  Results results = results_of(30, 30, 1e-3);
  results["sigmoid/batch/rate=3"] = curve(20, 1e-3);
  results["network/batch/rate=0.3"] = curve(10, 1e-3);
  results["network/batch/rate=0.3"]["diverged"] = true;  // got there before it diverged
  results["network/none/rate=1"] = curve(10, 1e-3);
  const Outcome outcome = outcome_of(results);
  const auto& rows = outcome.tables.at(0).rows;
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows.at(0).at(2), "0.3");  // all are the same: the first
  EXPECT_EQ(rows.at(1).at(2), "3");
  EXPECT_EQ(rows.at(2).at(2), "1");
  EXPECT_EQ(rows.at(3).at(2), "0.1");
}

// Clouds that a line tells apart: the target is all of them, and every run that is measured gets there.
TEST(SpeedExperiment, learns_what_can_be_learned) {
  const data::Splits splits = cloud_splits();
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = speed_experiment();
  Results results;
  for (const Trial& trial : experiment.trials(setup)) results[trial.key] = trial.run(results);
  const Outcome outcome = experiment.conclude(setup, results);
  for (const size_t series : {0u, 1u}) EXPECT_EQ(outcome.charts.at(0).series.at(series).y.back(), 1.0);
  EXPECT_EQ(outcome.charts.at(0).series.at(2).y.at(0), 1.0);
  for (const auto& row : outcome.tables.at(0).rows) EXPECT_EQ(row.back(), "0");
  // What goes into a sigmoid has percentiles in their order, with the norm and without it.
  for (const char* key : {"sigmoid/none/seed=1", "sigmoid/batch/seed=1"}) {
    const Json& inputs = results.at(key)["inputs"];
    ASSERT_EQ(inputs["steps"].size(), 51u);
    EXPECT_EQ(inputs["steps"].back(), 1000);
    for (size_t i = 0; i < 51; ++i) {
      EXPECT_LE(inputs["low"][i], inputs["median"][i]);
      EXPECT_LE(inputs["median"][i], inputs["high"][i]);
    }
    EXPECT_GT(inputs["swing"], 0);
  }
  // gamma is 1 and beta 0 before the first step, so the mean of the training examples is 0 and their deviation 1. The clouds lie two and two
  // on either side of most units: the median of the test examples may stand within one of them.
  EXPECT_NEAR(results.at("sigmoid/batch/seed=1")["inputs"]["median"][0].get<double>(), 0, 0.2);
}

}  // namespace
}  // namespace evenkeel::lab
