#include <gtest/gtest.h>

#include <fmt/format.h>

#include "evenkeel/lab/clouds_testing.h"
#include "evenkeel/lab/experiment.h"

namespace evenkeel::lab {
namespace {

constexpr double kRates[] = {1e-4, 1e-3, 1e-2, 0.1, 1, 10};

// Accuracies at the six rates of the quick lab.
Results results_of(const std::vector<double>& none, const std::vector<double>& batch, int64_t seed = 1) {
  Results results;
  for (size_t i = 0; i < std::size(kRates); ++i) {
    results[fmt::format("none/rate={}/seed={}", kRates[i], seed)] = {{"accuracy", none[i]},
                                                                     {"diverged", none[i] == 0.1}};
    results[fmt::format("batch/rate={}/seed={}", kRates[i], seed)] = {{"accuracy", batch[i]}, {"diverged", false}};
  }
  return results;
}
Outcome outcome_of(const Results& results, int64_t seeds = 1) {
  return learning_rate_experiment().conclude({.seeds = seeds, .quick = true}, results);
}

TEST(LearningRateExperiment, each_verdict_follows_from_its_figures) {
  const std::vector<double> narrow = {0.1, 0.3, 0.6, 0.8, 0.1, 0.1};
  EXPECT_EQ(outcome_of(results_of(narrow, {0.1, 0.3, 0.7, 0.8, 0.8, 0.3})).verdict, Verdict::kHolds);
  // Higher, but no wider: the low end is lost.
  EXPECT_EQ(outcome_of(results_of(narrow, {0.1, 0.1, 0.1, 0.7, 0.8, 0.3})).verdict, Verdict::kHoldsInPart);
  // Wider at the low end only.
  EXPECT_EQ(outcome_of(results_of(narrow, {0.1, 0.3, 0.8, 0.8, 0.1, 0.1})).verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(outcome_of(results_of(narrow, narrow)).verdict, Verdict::kDoesNotHold);
  // A network that learns nothing without the norm sets no bar that all pass.
  EXPECT_EQ(outcome_of(results_of({0.1, 0.1, 0.1, 0.1, 0.1, 0.1}, {0.1, 0.3, 0.8, 0.8, 0.1, 0.1})).verdict,
            Verdict::kHolds);
}

// The rule asks for a rate that is 3 times as high, and the grid's neighbours 0.1 and 0.3 are that in decimal numbers.
TEST(LearningRateExperiment, a_point_of_the_full_grid_is_three_times_as_high) {
  Results results;
  const auto put = [&](const std::string& norm, double highest) {
    for (const double rate : {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0}) {
      const bool works = rate >= 1e-2 && rate <= highest;
      results[fmt::format("{}/rate={}/seed=1", norm, rate)] = {{"accuracy", works ? 0.8 : 0.1}, {"diverged", false}};
    }
  };
  put("none", 0.1);
  put("batch", 0.3);
  const Outcome outcome = learning_rate_experiment().conclude({.seeds = 1}, results);
  EXPECT_EQ(outcome.verdict, Verdict::kHolds) << outcome.answer;
  EXPECT_NEAR(outcome.figures.at(0).median(), 3, 1e-9);
  // 5 points below the best, as 0.8 and 0.75 are printed, is still usable.
  results["none/rate=0.3/seed=1"]["accuracy"] = 0.75;
  EXPECT_NEAR(learning_rate_experiment().conclude({.seeds = 1}, results).figures.at(0).median(), 1, 1e-9);
}

TEST(LearningRateExperiment, the_figures_are_those_of_the_ranges) {
  const Outcome outcome = outcome_of(results_of({0.1, 0.3, 0.6, 0.8, 0.1, 0.1}, {0.1, 0.3, 0.76, 0.8, 0.78, 0.3}));
  EXPECT_NEAR(outcome.figures.at(0).median(), 10, 1e-9);  // 1 over 0.1
  EXPECT_EQ(outcome.figures.at(1).median(), 2);           // 2 decades less 0
  EXPECT_EQ(outcome.figures.at(2).median(), 0);           // one rate spans nothing
  EXPECT_EQ(outcome.figures.at(3).median(), 2);           // from 0.01 to 1
  EXPECT_NE(
      outcome.answer.find("With the norm 2 decades of rates are usable, up to 1; without it one rate is usable, 0.1."),
      std::string::npos)
      << outcome.answer;
  EXPECT_EQ(outcome.charts.at(0).series.at(1).y.at(4), 0.78);
  EXPECT_NEAR(outcome.charts.at(0).series.at(2).y.at(0), 0.75, 1e-9);
  EXPECT_NE(outcome.answer.find("0 of 6 runs came to values that are not finite with the norm, 3 without it"),
            std::string::npos)
      << outcome.answer;
}

TEST(LearningRateExperiment, a_problem_that_is_easy_is_learned_at_every_middle_rate) {
  const data::Splits splits = cloud_splits();
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = learning_rate_experiment();
  Results results;
  for (const Trial& trial : experiment.trials(setup)) results[trial.key] = trial.run(results);
  ASSERT_EQ(results.size(), 12u);
  for (const char* key : {"none/rate=0.1/seed=1", "batch/rate=0.1/seed=1"})
    EXPECT_EQ(results.at(key)["accuracy"], 1.0) << key;
  const Outcome outcome = experiment.conclude(setup, results);
  EXPECT_EQ(outcome.charts.at(0).series.at(0).x.size(), 6u);
  EXPECT_GE(outcome.figures.at(4).median(), 0.1);  // the highest usable rate without the norm
}

}  // namespace
}  // namespace evenkeel::lab
