// Experiment: does batch norm help because the distributions of the layers' inputs hold still? And what becomes of a norm when the
// data change after training?
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "evenkeel/lab/forward.h"
#include "evenkeel/lab/lab.h"
#include "evenkeel/lab/shifting.h"
#include "evenkeel/lab/training.h"
#include "evenkeel/lab/values.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::lab {
namespace {

constexpr const char* kName = "covariate-shift";

// --- (a) Shifting norms ---

constexpr uint64_t kRateSeed = 1000;  // of the runs that choose a learning rate: of none that is reported
const std::vector<double> kRates = {0.03, 0.1, 0.3, 1};

struct Variant {
  const char* name;
  bool norm, shifting;
};
constexpr Variant kVariants[] = {{"norm", true, false}, {"shifting", true, true}, {"none", false, false}};

ModelSpec variant_of(const LabSetup& setup, const Variant& variant) {
  ModelSpec spec = setup.network(setup.input().size() == 3 ? "cnn" : "mlp");
  spec.norm_options.affine = true;
  require_norms(spec, kName);
  if (!variant.norm) spec.norm = NormKind::kNone;
  return spec;
}

int64_t steps_of(const LabSetup& setup) { return setup.quick ? 60 : 160; }
constexpr int64_t kBatch = 128;
constexpr int64_t kEvery = 10;  // steps between two looks at the inputs; a loss is the mean of so many

Json train_variant(const LabSetup& setup, const Variant& variant, double rate, uint64_t seed, bool watch) {
  const int64_t steps = steps_of(setup);
  Training run({.spec = variant_of(setup, variant),
                .learning_rate = rate,
                .batch = kBatch,
                .steps = steps,
                .seed = seed,
                .threads = setup.threads},
               *setup.splits);
  ShiftingNorms shifting(run.model().spec, run.model().store, seed);
  std::optional<InputWatch> inputs;
  if (watch) inputs.emplace(run.model(), drawn_part(setup.splits->train, 256), setup.threads);
  Json json{{"rate", rate},
            {"steps", Json::array()},
            {"shift", Json::array()},
            {"drift", Json::array()},
            {"loss", Json::array()}};
  double loss = 0;
  for (int64_t step = 0; step < steps; ++step) {
    if (variant.shifting) shifting.apply(step);
    // Two steps one after the other, each with its own shift: before the update of the first and of the second.
    if (inputs && step % kEvery <= 1) {
      const InputWatch::Moved moved = inputs->look();
      if (step % kEvery == 1) {
        json["steps"].push_back(step);
        json["shift"].push_back(number(moved.from_last));
        json["drift"].push_back(number(moved.from_first));
      }
    }
    const bool went = run.step();
    if (variant.shifting) shifting.take_back();
    if (!went) break;
    loss += run.loss() / static_cast<double>(kEvery);
    if ((step + 1) % kEvery == 0) {
      json["loss"].push_back(number(loss));
      loss = 0;
    }
  }
  json["score"] = nullptr;
  json["accuracy"] = nullptr;
  // Statistics at test time are those of the training examples without shifting, for all alike.
  if (run.diverged() || !take_population_statistics(run.model(), setup.splits->train, 2000, setup.threads)) return json;
  json["score"] =
      number(-evaluate(run.model(), drawn_part(setup.splits->train, 2000), {.threads = setup.threads}).loss);
  if (watch) json["accuracy"] = number(run.test().accuracy);
  return json;
}

// --- (b) Other pictures ---

struct Change {
  std::string name;
  data::Corrupt corrupt = {};
  bool swap_colours = false;
  double factor = 1, offset = 0;  // of tables: in standard deviations of the training data
};
std::vector<Change> changes_of(const Shape& input) {
  std::vector<Change> changes = {{.name = "unchanged"}};
  if (input.size() != 3) {
    changes.push_back({.name = "moved", .offset = 1});
    changes.push_back({.name = "spread", .factor = 2});
    changes.push_back({.name = "spread, moved", .factor = 2, .offset = 1});
    return changes;
  }
  for (const auto& [name, corrupt] : std::vector<std::pair<const char*, const char*>>{{"dark", "brightness=-0.3"},
                                                                                      {"light", "brightness=0.3"},
                                                                                      {"flat", "contrast=0.3"},
                                                                                      {"inverted", "invert"},
                                                                                      {"blurred", "blur3"},
                                                                                      {"noisy", "noise=0.2"}})
    changes.push_back({.name = name, .corrupt = data::parse_corrupt(corrupt)});
  if (input[0] == 3) changes.push_back({.name = "colours swapped", .swap_colours = true});
  return changes;
}

// Red and blue exchanged.
data::Dataset with_swapped_colours(const data::Dataset& all) {
  data::Dataset set = data::first_examples(all, all.count);
  const size_t plane = set.values.bytes() / static_cast<size_t>(set.count * 3);
  for (size_t i = 0; i < static_cast<size_t>(set.count); ++i) {
    std::memcpy(set.values.raw() + 3 * i * plane, all.values.raw() + (3 * i + 2) * plane, plane);
    std::memcpy(set.values.raw() + (3 * i + 2) * plane, all.values.raw() + 3 * i * plane, plane);
  }
  return set;
}

struct Accuracies {
  double stale = 0, batch = 0, recalibrated = 0;
};
Accuracies accuracies_on(Model& model, const Change& change, const data::Dataset& train, const data::Dataset& test,
                         int threads) {
  Model changed = clone(model);
  data::Standardization& s = changed.standardization;
  for (size_t f = 0; f < s.mean.size(); ++f) {
    s.mean[f] -= change.offset * s.std[f];
    s.std[f] /= change.factor;
  }
  data::Dataset swapped_test, swapped_train;
  if (change.swap_colours) {
    swapped_test = with_swapped_colours(test);
    swapped_train = with_swapped_colours(train);
  }
  const data::Dataset& pictures = change.swap_colours ? swapped_test : test;
  const data::Dataset& calibration = change.swap_colours ? swapped_train : train;
  EvalSettings settings{.batch_size = 256, .threads = threads, .corrupt = change.corrupt};
  Accuracies a;
  a.stale = evaluate(changed, pictures, settings).accuracy;
  settings.statistics = EvalStatistics::kBatch;
  a.batch = evaluate(changed, pictures, settings).accuracy;
  settings.statistics = EvalStatistics::kRunning;
  recompute_statistics(
      changed, calibration,
      {.kind = RunningStatistics::kPopulation, .batch_size = 250, .corrupt = change.corrupt, .threads = threads});
  a.recalibrated = evaluate(changed, pictures, settings).accuracy;
  return a;
}

Json change_data(const LabSetup& setup, uint64_t seed) {
  Training run({.spec = variant_of(setup, kVariants[0]),
                .optimizer = {.kind = OptimizerKind::kMomentum},
                .learning_rate = 0.1,
                .schedule = ScheduleKind::kOneCycle,
                .batch = kBatch,
                .steps = setup.quick ? 80 : 240,
                .seed = seed,
                .threads = setup.threads},
               *setup.splits);
  while (run.step()) {
  }
  Json json = Json::object();
  if (run.diverged()) return json;
  const data::Dataset test = drawn_part(setup.splits->test, setup.quick ? 500 : 2000);
  const data::Dataset calibration = drawn_part(setup.splits->train, setup.quick ? 500 : 1000);
  for (const Change& change : changes_of(setup.input())) {
    const Accuracies a = accuracies_on(run.model(), change, calibration, test, setup.threads);
    json[change.name] = {{"stale", a.stale}, {"batch", a.batch}, {"recalibrated", a.recalibrated}};
  }
  return json;
}

std::vector<Trial> trials(const LabSetup& setup) {
  std::vector<Trial> list;
  const double seconds_per_step = 0.02;
  const double run_cost = seconds_per_step * static_cast<double>(steps_of(setup));
  for (const Variant& variant : kVariants) {
    require_trainable(variant_of(setup, variant), kBatch);
    const std::string prefix = fmt::format("rate/{}/", variant.name);
    for (const double rate : kRates) {
      list.push_back({rate_key(prefix, rate), run_cost,
                      [=](const Results&) { return train_variant(setup, variant, rate, kRateSeed, /*watch=*/false); }});
    }
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      list.push_back({fmt::format("run/{}/seed={}", variant.name, seed), run_cost + 1, [=](const Results& earlier) {
                        return train_variant(setup, variant, best_rate(earlier, prefix, kRates),
                                             static_cast<uint64_t>(seed), /*watch=*/true);
                      }});
    }
  }
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    list.push_back({fmt::format("data/seed={}", seed), setup.quick ? 3.0 : 7.0,
                    [=](const Results&) { return change_data(setup, static_cast<uint64_t>(seed)); }});
  }
  return list;
}

// --- Conclusions ---

constexpr double kLost = 0.05, kWonBack = 0.5, kKept = 0.5;

// What a chart and the verdict need of the runs of a variant.
struct Runs {
  // One of each seed. A run that diverged has the accuracy of guessing; one that was never measured has no shift: not a number.
  std::vector<double> shift, accuracy;
  double rate = 0;
};
Runs runs_of(const LabSetup& setup, const Results& results, const Variant& variant) {
  Runs runs;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const Json& one = results.at(fmt::format("run/{}/seed={}", variant.name, seed));
    std::vector<double> shifts;
    for (const Json& shift : one["shift"]) {
      if (shift.is_number()) shifts.push_back(shift.get<double>());
    }
    runs.shift.push_back(shifts.empty() ? std::nan("") : median_of(shifts));
    runs.accuracy.push_back(number_in(one, "accuracy").value_or(1 / static_cast<double>(setup.classes())));
    runs.rate = number_in(one, "rate").value_or(0);
  }
  return runs;
}

// The step of value i of a run's list: a loss is the mean of the steps since the one before.
double step_of(const Json& run, const std::string& what, size_t i) {
  return what == "loss" ? static_cast<double>(static_cast<int64_t>(i + 1) * kEvery) : run["steps"].at(i).get<double>();
}

report::Chart chart_of(const LabSetup& setup, const Results& results, const char* what, report::Chart chart) {
  for (const Variant& variant : kVariants) {
    std::map<double, std::vector<double>> points;
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      const Json& one = results.at(fmt::format("run/{}/seed={}", variant.name, seed));
      for (size_t i = 0; i < one[what].size(); ++i) {
        if (one[what][i].is_number()) points[step_of(one, what, i)].push_back(one[what][i].get<double>());
      }
    }
    report::Series series{.name = variant.name};
    for (const auto& [step, values] : points) add_point(series, step, values);
    chart.series.push_back(std::move(series));
  }
  return chart;
}

struct WonBack {
  std::vector<double> shares;  // of each change and seed that lost enough
  report::Chart chart;
};
WonBack won_back(const LabSetup& setup, const Results& results) {
  WonBack out{
      .shares = {},
      .chart = {.title = "Accuracy on changed data, by statistics",
                .x_label = "change of the test data",
                .y_label = "accuracy",
                .kind = report::ChartKind::kBar,
                .note = "Stale: the running statistics of training. Batch: of each batch of 256 test examples. "
                        "Recalibrated: made anew from 1,000 training examples (quick: 500) changed in the same way."}};
  std::vector<report::Series> series = {{.name = "stale"}, {.name = "batch"}, {.name = "recalibrated"}};
  double x = 0;
  for (const Change& change : changes_of(setup.input())) {
    for (report::Series& one : series) {
      std::vector<double> values;
      for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
        const Json& data = results.at(fmt::format("data/seed={}", seed));
        if (data.contains(change.name)) values.push_back(data[change.name][one.name].get<double>());
      }
      add_point(one, x, values);
    }
    out.chart.categories.push_back(change.name);
    ++x;
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      const Json& data = results.at(fmt::format("data/seed={}", seed));
      if (!data.contains(change.name)) continue;
      const Json& here = data[change.name];
      const double stale = here["stale"].get<double>();
      const double lost = data["unchanged"]["stale"].get<double>() - stale;
      if (at_least(lost, kLost)) out.shares.push_back((here["recalibrated"].get<double>() - stale) / lost);
    }
  }
  out.chart.series = std::move(series);
  return out;
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  const Runs norm = runs_of(setup, results, kVariants[0]), shifting = runs_of(setup, results, kVariants[1]);
  const Runs none = runs_of(setup, results, kVariants[2]);
  bool shifts_more = true, gains = true;
  std::vector<double> kept;
  for (size_t i = 0; i < norm.accuracy.size(); ++i) {
    shifts_more =
        shifts_more && shifting.shift[i] > none.shift[i];  // both were measured: not a number is never greater
    const double gain = norm.accuracy[i] - none.accuracy[i];
    gains = gains && gain > 0;
    kept.push_back(gain > 0 ? (shifting.accuracy[i] - none.accuracy[i]) / gain : 0);
  }
  const bool unstable_helps = shifts_more && gains && at_least(median_of(kept), kKept);
  WonBack back = won_back(setup, results);
  const bool repairs = !back.shares.empty() && at_least(median_of(back.shares), kWonBack);

  Outcome outcome;
  outcome.verdict = unstable_helps && repairs   ? Verdict::kHolds
                    : unstable_helps || repairs ? Verdict::kHoldsInPart
                                                : Verdict::kDoesNotHold;
  const auto moved = [](const Runs& runs) {
    const double shift = median_of(runs.shift);
    return std::isnan(shift) ? std::string("an amount that could not be measured") : fmt::format("{:.2g}", shift);
  };
  outcome.answer = fmt::format(
      "From step to step the layers' inputs moved by {} of their standard deviation with norms, {} with "
      "shifting norms and {} without norms; the accuracies were {:.1f} %, {:.1f} % and {:.1f} %",
      moved(norm), moved(shifting), moved(none), 100 * median_of(norm.accuracy), 100 * median_of(shifting.accuracy),
      100 * median_of(none.accuracy));
  outcome.answer += gains
                        ? fmt::format(", so that the shifting norms kept {:.0f} % of the gain. ", 100 * median_of(kept))
                        : ": norms did not gain accuracy in every run, so that there is no sure gain to explain. ";
  outcome.answer += back.shares.empty() ? "No change of the data cost 5 points of accuracy."
                                        : fmt::format(
                                              "Of the accuracy that changed data cost, statistics made anew "
                                              "won {:.0f} % back.",
                                              100 * median_of(back.shares));
  outcome.figures = {{.name = "shift from step to step, norm", .values = norm.shift, .unit = "standard deviations"},
                     {.name = "shift, shifting norm", .values = shifting.shift, .unit = "standard deviations"},
                     {.name = "shift, no norm", .values = none.shift, .unit = "standard deviations"},
                     {.name = "accuracy, norm", .values = norm.accuracy},
                     {.name = "accuracy, shifting norm", .values = shifting.accuracy},
                     {.name = "accuracy, no norm", .values = none.accuracy},
                     {.name = "share of the gain that is kept under shifting", .values = kept}};
  if (!back.shares.empty())
    outcome.figures.push_back(
        {.name = "share of the lost accuracy that new statistics win back", .values = back.shares});
  outcome.tables.push_back({.title = "Learning rate of each, the best of 0.03, 0.1, 0.3 and 1",
                            .header = {"network", "learning rate"},
                            .rows = {{"norm", fmt::format("{:g}", norm.rate)},
                                     {"shifting norm", fmt::format("{:g}", shifting.rate)},
                                     {"no norm", fmt::format("{:g}", none.rate)}}});
  outcome.charts = {chart_of(setup, results, "shift",
                             {.title = "Shift of the layers' inputs in one step",
                              .x_label = "step",
                              .y_label = "standard deviations",
                              .log_y = true}),
                    chart_of(setup, results, "drift",
                             {.title = "Distance of the layers' inputs from where they began",
                              .x_label = "step",
                              .y_label = "standard deviations",
                              .log_y = true}),
                    chart_of(setup, results, "loss",
                             {.title = "Loss in training",
                              .x_label = "step",
                              .y_label = "loss",
                              .note = "Means of the 10 steps up to there. With shifting norms it is the loss under the "
                                      "shift."}),
                    std::move(back.chart)};
  return outcome;
}

}  // namespace

Experiment covariate_shift_experiment() {
  return {
      .name = kName,
      .title = "Internal covariate shift",
      .claim =
          "Batch norm was introduced to keep the distributions of the layers' inputs still while the network learns. "
          "That is not why it helps: a network whose norms are followed by random shifts, so that its layers' inputs "
          "move more than without norms, trains nearly as well as with norms. A shift of the data after training, "
          "though, does meet the norm: its stored statistics no longer fit, and new ones repair much of the harm.",
      .source =
          "Ioffe and Szegedy 2015 (the aim); Santurkar et al. 2018, section 2 (shifting norms); Li et al. 2016 and "
          "Schneider et al. 2020 (new statistics for new data)",
      .protocol =
          "(a) The network is trained by plain SGD in batches of 128 for 160 steps (quick: 60) with norms, with "
          "shifting norms, and without norms, each at its own best of the learning rates 0.03, 0.1, 0.3 and 1 (the "
          "least loss on 2,000 training examples, another seed). Shifting: before every step gamma and beta of every "
          "channel become s * gamma and s * beta + b, with s log-uniform from 1/1.25 to 1.25 and b uniform from -0.5 "
          "to 0.5, drawn anew for each step and channel; after the step the same change is taken back, so that only "
          "the update stays. The shift is the same for all examples of a step; Santurkar et al. draw one for each "
          "example, too. Every 10 steps the inputs of all layers above the first are looked at on the same 256 "
          "examples in two successive steps: how far have they moved, in units of their standard deviation (the "
          "Wasserstein distance of normal distributions, root mean square over the channels, mean over the "
          "layers)? Accuracy is that of the test set, without shifts, by statistics of 2,000 training examples. "
          "(b) The network with norms is trained for 240 steps (quick: 80, momentum 0.9, one cycle up to 0.1) and "
          "tested on pictures made darker, lighter, flat, inverted, blurred, noisy and, where they have colours, with "
          "red and blue exchanged; in tables all columns are moved by a standard deviation, spread by 2, or both. "
          "Stale, batch and recalibrated statistics are compared.",
      .rule =
          "(a) holds where the inputs move more under shifting norms than without norms and norms gain accuracy in "
          "every run, and shifting norms keep at least half of that gain in the median; a run that comes to a value "
          "that is not finite counts as one that guesses, and where its inputs were never measured (a) does not hold. "
          "(b) holds where recalibrated "
          "statistics win back at least half of the lost accuracy, in the median over seeds and those changes that "
          "cost 5 points or more. Holds where both do; in part where one does.",
      .lesson =
          "Every layer learns on what the layers below give it, and these change with every step. Internal covariate "
          "shift is the name of that, and the first explanation of batch norm was that it takes the shift away. "
          "Here it is put back on purpose, behind the norm: the next layer sees another mean and another spread in "
          "every step. If stability were the reason of the gain, the gain would have to go. What norms do leave is "
          "easier to see in the experiment on the loss landscape. The second half is about a real shift: the norm "
          "subtracts a mean that it remembers from training, and where the data have changed that mean is wrong in "
          "every layer. New statistics need no labels and no training.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
