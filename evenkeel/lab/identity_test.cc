#include <gtest/gtest.h>

#include "evenkeel/lab/experiment.h"

namespace evenkeel::lab {
namespace {

Results results_of(double identity, double gradient, double variance_of_2) {
  Results results;
  results["identity/seed=1"] = {{"error", identity},
                                {"gammas", Json::array({{{"gamma", 2.0}, {"variance", variance_of_2}}})}};
  results["gradient/seed=1"] = {{"error", gradient}};
  return results;
}

TEST(IdentityExperiment, each_verdict_follows_from_its_figures) {
  const LabSetup setup{.seeds = 1};
  const Experiment experiment = identity_experiment();
  EXPECT_EQ(experiment.conclude(setup, results_of(1e-7, 1e-4, 4.0)).verdict, Verdict::kHolds);
  EXPECT_EQ(experiment.conclude(setup, results_of(1e-7, 1e-4, 0.25)).verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(experiment.conclude(setup, results_of(1e-7, 0.5, 4.0)).verdict, Verdict::kHoldsInPart);
  EXPECT_EQ(experiment.conclude(setup, results_of(0.1, 0.5, 0.25)).verdict, Verdict::kDoesNotHold);
}

TEST(IdentityExperiment, holds) {
  const LabSetup setup{.seeds = 2};
  const Experiment experiment = identity_experiment();
  Results results;
  for (const Trial& trial : experiment.trials(setup)) results[trial.key] = trial.run(results);
  const Outcome outcome = experiment.conclude(setup, results);
  EXPECT_EQ(outcome.verdict, Verdict::kHolds) << outcome.answer;
  EXPECT_EQ(outcome.figures.at(0).values.size(), 2u);
  // The program's own norm was asked, in single precision: rounding is there, and little of it.
  EXPECT_GT(outcome.figures.at(0).least(), 1e-9);
  EXPECT_LT(outcome.figures.at(0).greatest(), 5e-6);
  EXPECT_EQ(outcome.charts.at(0).series.at(0).x.size(), 5u);
}

}  // namespace
}  // namespace evenkeel::lab
