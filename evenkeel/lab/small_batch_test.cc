#include <gtest/gtest.h>

#include <fmt/format.h>

#include "evenkeel/lab/clouds_testing.h"
#include "evenkeel/lab/experiment.h"

namespace evenkeel::lab {
namespace {

// Accuracies at 2 examples (exact: at 8); everything else is 0.8.
Results results_of(double batch, double group, double exact, double recomputed, int64_t seeds = 1,
                   const std::string& network = "net") {
  Results results;
  for (const std::string norm : {"batch", "renorm", "group"}) {
    for (const double rate : {0.03, 0.1})
      results[fmt::format("{}/{}/rate={}", network, norm, rate)] = {{"accuracy", rate}, {"diverged", false}};
  }
  for (int64_t seed = 1; seed <= seeds; ++seed) {
    for (const std::string norm : {"batch", "renorm", "group", "ghost"}) {
      for (const int64_t examples : {2, 8, 128})
        results[fmt::format("{}/{}/examples={}/seed={}", network, norm, examples, seed)] = {{"accuracy", 0.8},
                                                                                            {"diverged", false}};
    }
    results[fmt::format("{}/batch/examples=2/seed={}", network, seed)] = {{"accuracy", batch},
                                                                          {"recomputed", recomputed}};
    results[fmt::format("{}/group/examples=2/seed={}", network, seed)]["accuracy"] = group;
    results[fmt::format("{}/exact/examples=8/seed={}", network, seed)] = {{"accuracy", exact}};
  }
  return results;
}
Outcome outcome_of(const Results& results, int64_t seeds = 1) {
  return small_batch_experiment().conclude({.seeds = seeds, .quick = true}, results);
}

TEST(SmallBatchExperiment, each_verdict_follows_from_its_figures) {
  EXPECT_EQ(outcome_of(results_of(0.6, 0.79, 0.8, 0.7)).verdict, Verdict::kHolds);
  EXPECT_EQ(outcome_of(results_of(0.6, 0.79, 0.78, 0.7)).verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(outcome_of(results_of(0.6, 0.79, 0.82, 0.7)).verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(outcome_of(results_of(0.6, 0.61, 0.8, 0.7)).verdict, Verdict::kHoldsInPart);  // all lose: the small steps
  EXPECT_EQ(outcome_of(results_of(0.79, 0.79, 0.7, 0.79)).verdict, Verdict::kDoesNotHold);
  // One seed of three that is not flat is enough to say so.
  Results results = results_of(0.6, 0.79, 0.8, 0.7, 3);
  EXPECT_EQ(outcome_of(results, 3).verdict, Verdict::kHolds);
  results["net/exact/examples=8/seed=3"]["accuracy"] = 0.79;
  EXPECT_EQ(outcome_of(results, 3).verdict, Verdict::kHoldsInPart);
}

TEST(SmallBatchExperiment, the_name_of_a_network_may_have_slashes) {
  const Outcome outcome = outcome_of(results_of(0.6, 0.79, 0.8, 0.7, 1, "nets/mine"));
  EXPECT_EQ(outcome.verdict, Verdict::kHolds);
  EXPECT_EQ(outcome.answer.find("nets/mine: from 128"), 0u) << outcome.answer;
}

TEST(SmallBatchExperiment, a_loss_of_exactly_the_limit_counts) {
  ASSERT_GT(100 * (0.8 - 0.795), 0.5);
  EXPECT_EQ(outcome_of(results_of(0.6, 0.79, 0.795, 0.7)).verdict, Verdict::kHolds);
}

TEST(SmallBatchExperiment, every_network_has_to_show_it) {
  Results results = results_of(0.6, 0.79, 0.8, 0.7);
  for (const auto& [key, result] : results_of(0.79, 0.79, 0.8, 0.79, 1, "other")) results[key] = result;
  Outcome outcome = outcome_of(results);
  EXPECT_EQ(outcome.verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(outcome.charts.size(), 2u);
  EXPECT_EQ(outcome.tables.at(0).rows.size(), 12u);
  for (const auto& [key, result] : results_of(0.7, 0.79, 0.8, 0.79, 1, "other")) results[key] = result;
  EXPECT_EQ(outcome_of(results).verdict, Verdict::kHolds);
}

TEST(SmallBatchExperiment, the_figures_are_losses_beyond_those_of_group_norm) {
  const Outcome outcome = outcome_of(results_of(0.6, 0.79, 0.8, 0.7));
  EXPECT_NEAR(outcome.figures.at(0).median(), 19, 1e-9);
  EXPECT_NEAR(outcome.figures.at(1).median(), 9, 1e-9);
  EXPECT_NEAR(outcome.figures.at(2).median(), 0, 1e-9);
  const report::Chart& chart = outcome.charts.at(0);
  ASSERT_EQ(chart.series.size(), 6u);
  EXPECT_TRUE(chart.series.at(1).dashed);
  EXPECT_EQ(chart.series.at(1).y, (std::vector<double>{0.7, 0.8, 0.8}));
  EXPECT_EQ(chart.series.at(5).x, (std::vector<double>{8, 128}));  // exact, and batch norm's whole batch
}

// 256 examples that a line tells apart: whatever normalizes them, they are learned, and micro-batches of 8 give what the batch gives.
TEST(SmallBatchExperiment, exact_micro_batches_are_the_whole_batch) {
  const data::Splits splits = cloud_splits(256, 64);
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = small_batch_experiment();
  Results results;
  for (const Trial& trial : experiment.trials(setup)) {
    const bool slow = trial.key.find("examples=2/") != std::string::npos;
    results[trial.key] =
        slow ? Json{{"accuracy", trial.key.find("/batch/") == std::string::npos ? 0.9 : 0.8}, {"diverged", false}}
             : trial.run(results);
  }
  const auto at = [&](const std::string& key) { return results.at("linear-layers/" + key); };
  for (const char* key : {"batch/examples=128/seed=1", "batch/examples=8/seed=1", "group/examples=8/seed=1",
                          "group/examples=128/seed=1", "renorm/examples=128/seed=1", "ghost/examples=8/seed=1"})
    EXPECT_EQ(at(key)["accuracy"], 1.0) << key;
  EXPECT_EQ(at("batch/examples=8/seed=1")["recomputed"], 1.0);
  EXPECT_EQ(at("exact/examples=8/seed=1")["accuracy"], at("batch/examples=128/seed=1")["accuracy"]);
  const Outcome outcome = experiment.conclude(setup, results);
  EXPECT_EQ(outcome.verdict, Verdict::kHolds) << outcome.answer;
}

}  // namespace
}  // namespace evenkeel::lab
