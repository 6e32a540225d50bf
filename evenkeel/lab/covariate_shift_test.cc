#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/lab/experiment.h"
#include "evenkeel/lab/sets_testing.h"
#include "evenkeel/lab/shifting.h"
#include "evenkeel/lab/training.h"

namespace evenkeel::lab {
namespace {

struct Pretend {
  double norm_accuracy = 0.9, shifting_accuracy = 0.88, none_accuracy = 0.8;
  double shifting_shift = 0.5, none_shift = 0.1;
  double recalibrated = 0.8;  // 0.9 before and 0.5 after the change
};
Results results_of(const Pretend& p) {
  const auto run = [](double accuracy, double shift) {
    return Json{{"rate", 0.1},        {"steps", {1, 11}}, {"shift", {shift, shift}}, {"drift", {shift, shift}},
                {"loss", {2.0, 1.0}}, {"score", -1.0},    {"accuracy", accuracy}};
  };
  Results results;
  results["run/norm/seed=1"] = run(p.norm_accuracy, 0.05);
  results["run/shifting/seed=1"] = run(p.shifting_accuracy, p.shifting_shift);
  results["run/none/seed=1"] = run(p.none_accuracy, p.none_shift);
  results["data/seed=1"] = {{"unchanged", {{"stale", 0.9}, {"batch", 0.9}, {"recalibrated", 0.9}}},
                            {"moved", {{"stale", 0.5}, {"batch", 0.7}, {"recalibrated", p.recalibrated}}},
                            {"spread", {{"stale", 0.88}, {"batch", 0.1}, {"recalibrated", 0.1}}}};  // cost too little
  return results;
}

data::Splits clouds() {
  data::Splits splits;
  const auto value = [](int64_t i, int64_t, float random) { return random * 2 - 1 + (i % 2 == 0 ? 2.0f : -2.0f); };
  splits.train = made_set({3}, 60, 1, value);
  splits.test = made_set({3}, 40, 2, value);
  return splits;
}

TEST(CovariateShift, each_verdict_follows_from_its_figures) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 1};
  const auto verdict = [&](const Pretend& p) {
    return covariate_shift_experiment().conclude(setup, results_of(p)).verdict;
  };
  EXPECT_EQ(verdict({}), Verdict::kHolds);
  EXPECT_EQ(verdict({.shifting_accuracy = 0.84}), Verdict::kHoldsInPart);  // keeps less than half of the gain
  EXPECT_EQ(verdict({.shifting_shift = 0.05}), Verdict::kHoldsInPart);     // is stabler than without norms
  EXPECT_EQ(verdict({.none_accuracy = 0.95}), Verdict::kHoldsInPart);      // nothing to explain
  EXPECT_EQ(verdict({.recalibrated = 0.6}), Verdict::kHoldsInPart);
  EXPECT_EQ(verdict({.none_accuracy = 0.95, .recalibrated = 0.6}), Verdict::kDoesNotHold);
}

TEST(CovariateShift, a_run_that_diverged_has_learned_nothing) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 1};
  Results results = results_of({.recalibrated = 0.6});
  results["run/shifting/seed=1"]["accuracy"] = nullptr;
  results["run/shifting/seed=1"]["shift"][1] = nullptr;
  EXPECT_EQ(covariate_shift_experiment().conclude(setup, results).verdict, Verdict::kDoesNotHold);
  results = results_of({});
  results["data/seed=1"] = Json::object();
  const Outcome outcome = covariate_shift_experiment().conclude(setup, results);
  EXPECT_EQ(outcome.verdict, Verdict::kHoldsInPart);
  EXPECT_NE(outcome.answer.find("No change"), std::string::npos);
}

// That the network without norms fails says that norms help, not that their shifts do no harm.
TEST(CovariateShift, part_a_holds_on_measured_shifts_and_against_guessing_only) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 1};
  Results results = results_of({.recalibrated = 0.6});
  results["run/none/seed=1"]["accuracy"] = nullptr;
  EXPECT_EQ(covariate_shift_experiment().conclude(setup, results).verdict, Verdict::kHoldsInPart);
  results["run/shifting/seed=1"]["accuracy"] = 0.68;  // of two classes guessing finds half: 0.18 of the gain of 0.4
  EXPECT_EQ(covariate_shift_experiment().conclude(setup, results).verdict, Verdict::kDoesNotHold);
  results = results_of({.recalibrated = 0.6});
  results["run/none/seed=1"]["accuracy"] = nullptr;
  results["run/none/seed=1"]["shift"] = Json::array();
  const Outcome outcome = covariate_shift_experiment().conclude(setup, results);
  EXPECT_EQ(outcome.verdict, Verdict::kDoesNotHold);
  EXPECT_NE(outcome.answer.find("could not be measured without norms"), std::string::npos) << outcome.answer;
  EXPECT_TRUE(std::isnan(outcome.figures.at(2).values.at(0)));
}

TEST(CovariateShift, a_loss_stands_at_the_end_of_the_steps_that_it_is_the_mean_of) {
  const data::Splits splits = clouds();
  const Outcome outcome = covariate_shift_experiment().conclude({.splits = &splits, .seeds = 1}, results_of({}));
  ASSERT_EQ(outcome.charts.at(2).title, "Loss in training");
  EXPECT_EQ(outcome.charts.at(2).series.at(0).x, (std::vector<double>{10, 20}));
  EXPECT_EQ(outcome.charts.at(0).series.at(0).x, (std::vector<double>{1, 11}));
}

TEST(CovariateShift, trials_fit_together) {
  const data::Splits splits = clouds();
  const LabSetup setup{.splits = &splits, .seeds = 1, .quick = true};
  const Experiment experiment = covariate_shift_experiment();
  Results results;
  for (const Trial& trial : experiment.trials(setup)) {
    // Rates are chosen among pretended ones: 12 runs less.
    results[trial.key] =
        trial.key.starts_with("rate/") ? Json{{"score", trial.key.ends_with("/0.03") ? 1 : 0}} : trial.run(results);
  }
  const Outcome outcome = experiment.conclude(setup, results);
  EXPECT_EQ(results.at("run/norm/seed=1")["rate"], 0.03);
  EXPECT_EQ(results.at("run/norm/seed=1")["steps"].size(), 6u);
  EXPECT_GT(outcome.figures.at(1).values.at(0), outcome.figures.at(0).values.at(0));  // shifting norms shift
  EXPECT_EQ(results.at("run/norm/seed=1")["accuracy"], 1);
  // Norms whose statistics are made anew undo what was done to a column.
  const Json& data = results.at("data/seed=1");
  EXPECT_EQ(data["spread, moved"]["recalibrated"], 1);
  EXPECT_LT(data["spread, moved"]["stale"].get<double>(), 1);
}

TEST(CovariateShift, colours_can_be_exchanged) {
  // Red pictures and blue ones: exchanged, every answer is wrong, whatever the statistics.
  const auto value = [](int64_t i, int64_t j, float random) {
    return random * 0.2f + ((i % 2 == 0) == (j < 64) && (j < 64 || j >= 128) ? 1.0f : 0.0f);
  };
  data::Splits splits;
  splits.train = made_set({3, 8, 8}, 40, 1, value);
  splits.test = made_set({3, 8, 8}, 20, 2, value);
  const LabSetup setup{.splits = &splits, .model = "cnn", .seeds = 1, .quick = true};
  for (const Trial& trial : covariate_shift_experiment().trials(setup)) {
    if (trial.key != "data/seed=1") continue;
    const Json json = trial.run({});
    EXPECT_EQ(json["unchanged"]["stale"], 1);
    EXPECT_EQ(json["colours swapped"]["stale"], 0);
    EXPECT_EQ(json["colours swapped"]["recalibrated"], 0);
    return;
  }
  FAIL();
}

TEST(ShiftingNorms, leave_nothing_but_the_update) {
  Model model;
  model.spec = zoo_model("mlp", {3}, 2);
  initialize(build_network(model.spec, Mode::kTrain), 1, &model.store);
  const auto gamma = [&] { return model.store.at("bn2.weight").values<float>()[7]; };
  const auto beta = [&] { return model.store.at("bn1.bias").values<float>()[3]; };
  ShiftingNorms shifting(model.spec, model.store, 5);
  shifting.apply(1);
  EXPECT_NE(gamma(), 1);
  EXPECT_NEAR(std::log(gamma()), 0, std::log(1.25));
  EXPECT_NE(beta(), 0);
  EXPECT_LE(std::abs(beta()), 0.5f);
  const float first = gamma();
  shifting.take_back();
  EXPECT_EQ(gamma(), 1);
  EXPECT_EQ(beta(), 0);
  shifting.apply(2);
  EXPECT_NE(gamma(), first);
  model.store.writable("bn2.weight").values<float>()[7] += 0.25f;
  shifting.take_back();
  EXPECT_NEAR(gamma(), 1.25f, 1e-6);
  shifting.apply(1);
  EXPECT_NEAR(gamma(), 1.25f * first, 1e-6);  // a function of the step
}

TEST(InputWatch, measures_how_far_inputs_have_moved) {
  const data::Splits splits = clouds();
  Training run({.spec = zoo_model("mlp", {3}, 2), .steps = 1, .threads = 1}, splits);
  InputWatch inputs(run.model(), splits.train, 1);
  EXPECT_EQ(inputs.look().from_last, 0);
  EXPECT_EQ(inputs.look().from_last, 0);
  // What relu lets through is twice as large: mean and standard deviation, both layers.
  for (const char* gamma : {"bn1.weight", "bn2.weight"}) {
    for (float& value : run.model().store.writable(gamma).values<float>()) value = 2;
  }
  const InputWatch::Moved moved = inputs.look();
  EXPECT_GT(moved.from_last, 1);
  EXPECT_EQ(moved.from_first, moved.from_last);
  const InputWatch::Moved still = inputs.look();
  EXPECT_EQ(still.from_last, 0);
  EXPECT_EQ(still.from_first, moved.from_first);
}

}  // namespace
}  // namespace evenkeel::lab
