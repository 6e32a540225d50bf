// Experiment: the statistics at test time. Which stand in for those of the batch, and from which step of training on?
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "evenkeel/core/error.h"
#include "evenkeel/lab/forward.h"
#include "evenkeel/lab/lab.h"
#include "evenkeel/lab/step_average.h"
#include "evenkeel/lab/training.h"
#include "evenkeel/lab/values.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::lab {
namespace {

constexpr const char* kName = "test-time";

ModelSpec spec_of(const LabSetup& setup) {
  ModelSpec spec = setup.network(setup.input().size() == 3 ? "cnn" : "mlp");
  require_norms(spec, kName);
  // Each step leaves the statistics of its batch, from which any number of averages is made during the same run.
  spec.norm_options.new_batch_weight = 1;
  spec.norm_options.bias_corrected = spec.norm_options.cumulative = false;
  spec.norm_options.biased = false;
  return spec;
}

struct AverageKind {
  const char* name;
  RunningStatistics kind;
  double weight;
};
constexpr AverageKind kAverages[] = {{"ema 0.5", RunningStatistics::kEma, 0.5},
                                     {"ema 0.1", RunningStatistics::kEma, 0.1},
                                     {"ema 0.01", RunningStatistics::kEma, 0.01},
                                     {"cumulative", RunningStatistics::kCumulative, 0}};
constexpr const char* kMeanOfBatches = "mean of batches";
constexpr const char* kPopulation = "population";
constexpr const char* kBatch = "batch of 256";
constexpr const char* kSingle = "single example";

std::vector<std::string> methods() {
  std::vector<std::string> names;
  for (const AverageKind& average : kAverages) names.emplace_back(average.name);
  for (const char* name : {kMeanOfBatches, kPopulation, kBatch, kSingle}) names.emplace_back(name);
  return names;
}

double accuracy_by_batch(Model& model, const data::Dataset& test, int64_t batch, int threads) {
  return evaluate(model, test, {.statistics = EvalStatistics::kBatch, .batch_size = batch, .threads = threads})
      .accuracy;
}

// Null where the network refuses: a batch of one example leaves one value per channel to a dense layer.
Json single_example(Model& model, const data::Dataset& test, int threads) {
  try {
    return accuracy_by_batch(model, test, 1, threads);
  } catch (const UsageError&) {
    return nullptr;
  }
}

// Every example twice in a row: a batch of two is then one example, and what a dense layer's norm would give for one.
data::Dataset twice(const data::Dataset& set) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < set.count; ++i) indices.insert(indices.end(), {i, i});
  return data::examples_at(set, indices);
}

class Checkpoints {
 public:
  Checkpoints(const LabSetup& setup, Training& run, const std::vector<StepAverage>& averages, int64_t batch)
      : setup_(setup), run_(run), averages_(averages), batch_(batch) {
    test_ = drawn_part(setup.splits->test, setup.quick ? 500 : 1000);
    calibration_ = drawn_part(setup.splits->train, 1000);
  }
  Json look() {
    Json json{{"step", run_.steps_done()}};
    for (size_t i = 0; i < averages_.size(); ++i) {
      Model model = clone(run_.model());
      assign_statistics(model, averages_[i].result());
      json[kAverages[i].name] = evaluate(model, test_, {.threads = setup_.threads}).accuracy;
    }
    json[kMeanOfBatches] = by_passes(RunningStatistics::kMeanOfBatches, batch_);
    json[kPopulation] = by_passes(RunningStatistics::kPopulation, 250);
    json[kBatch] = accuracy_by_batch(run_.model(), test_, std::min<int64_t>(256, test_.count), setup_.threads);
    json[kSingle] = single_example(run_.model(), test_, setup_.threads);
    return json;
  }
  const data::Dataset& test() const { return test_; }

 private:
  double by_passes(RunningStatistics kind, int64_t batch) {
    Model model = clone(run_.model());
    recompute_statistics(model, calibration_, {.kind = kind, .batch_size = batch, .threads = setup_.threads});
    return evaluate(model, test_, {.threads = setup_.threads}).accuracy;
  }

  const LabSetup& setup_;
  Training& run_;
  const std::vector<StepAverage>& averages_;
  int64_t batch_;
  data::Dataset test_, calibration_;
};

constexpr int64_t kMainBatch = 128;
const std::vector<int64_t> kTestBatches = {1, 2, 4, 8, 16, 64, 256};

std::vector<int64_t> batches_of(const LabSetup& setup) {
  return setup.quick ? std::vector<int64_t>{16, kMainBatch} : std::vector<int64_t>{8, 32, kMainBatch};
}
std::vector<int64_t> looks_of(const LabSetup& setup, int64_t batch) {
  const int64_t last = setup.quick ? 100 : 200;
  if (batch != kMainBatch) return {last};
  return setup.quick ? std::vector<int64_t>{5, 10, 20, last} : std::vector<int64_t>{2, 5, 10, 20, 50, 100, last};
}

Json train_and_look(const LabSetup& setup, int64_t batch, uint64_t seed) {
  const std::vector<int64_t> looks = looks_of(setup, batch);
  Training run({.spec = spec_of(setup),
                .learning_rate = 0.1,
                .batch = batch,
                .steps = looks.back(),
                .seed = seed,
                .threads = setup.threads},
               *setup.splits);
  std::vector<StepAverage> averages;
  const std::vector<ChannelStatistics> start = running_statistics_of(run.model().spec, run.model().store);
  for (const AverageKind& average : kAverages) averages.emplace_back(average.kind, average.weight, start);
  Checkpoints checkpoints(setup, run, averages, batch);
  Json json{{"looks", Json::array()}, {"test batches", Json::array()}};
  while (run.step()) {
    const std::vector<ChannelStatistics> now = running_statistics_of(run.model().spec, run.model().store);
    for (StepAverage& average : averages) average.add(now);
    if (std::find(looks.begin(), looks.end(), run.steps_done()) != looks.end())
      json["looks"].push_back(checkpoints.look());
  }
  if (run.diverged() || batch != kMainBatch) return json;
  const data::Dataset& test = checkpoints.test();
  for (const int64_t size : kTestBatches) {
    if (size > test.count) break;
    const Json accuracy = size == 1 ? single_example(run.model(), test, setup.threads)
                                    : Json(accuracy_by_batch(run.model(), test, size, setup.threads));
    json["test batches"].push_back({{"size", size}, {"accuracy", accuracy}});
  }
  return json;
}

// A dense network and batches of one example: asked for directly, which is refused, and by giving each example twice.
Json dense_single(const LabSetup& setup, uint64_t seed) {
  Training run({.spec = zoo_model("mlp", setup.input(), setup.classes()),
                .learning_rate = 0.1,
                .steps = setup.quick ? 50 : 100,
                .seed = seed,
                .threads = setup.threads},
               *setup.splits);
  while (run.step()) {
  }
  const data::Dataset test = drawn_part(setup.splits->test, 500);
  Json json{{"refusal", ""}};
  try {
    accuracy_by_batch(run.model(), test, 1, setup.threads);
  } catch (const UsageError& e) {
    json["refusal"] = e.what();
  }
  const EvalResult doubled = evaluate(
      run.model(), twice(test), {.statistics = EvalStatistics::kBatch, .batch_size = 2, .threads = setup.threads});
  std::vector<int32_t> answers = doubled.predictions;
  std::sort(answers.begin(), answers.end());
  json["different answers"] = std::unique(answers.begin(), answers.end()) - answers.begin();
  json["running"] = evaluate(run.model(), test, {.threads = setup.threads}).accuracy;
  json["twice"] = doubled.accuracy;
  return json;
}

std::string key_of(int64_t batch, int64_t seed) { return fmt::format("train/batch={}/seed={}", batch, seed); }
std::string dense_key(int64_t seed) { return fmt::format("dense/seed={}", seed); }

std::vector<Trial> trials(const LabSetup& setup) {
  std::vector<Trial> list;
  for (const int64_t batch : batches_of(setup)) require_trainable(spec_of(setup), batch);
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const auto s = static_cast<uint64_t>(seed);
    for (const int64_t batch : batches_of(setup)) {
      list.push_back({key_of(batch, seed), batch == kMainBatch ? (setup.quick ? 6.0 : 12.0) : 1.7,
                      [=](const Results&) { return train_and_look(setup, batch, s); }});
    }
    list.push_back({dense_key(seed), 0.2, [=](const Results&) { return dense_single(setup, s); }});
  }
  return list;
}

// --- Conclusions ---

constexpr double kNear = 0.01, kEarlyLoss = 0.05, kSingleLoss = 0.1;

std::vector<double> accuracies(const LabSetup& setup, const Results& results, int64_t batch, int64_t step,
                               const std::string& method) {
  std::vector<double> values;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    for (const Json& look : results.at(key_of(batch, seed))["looks"]) {
      if (look["step"] != step) continue;
      if (const auto value = number_in(look, method)) values.push_back(*value);
    }
  }
  return values;
}

// One number, or nothing where all runs diverged.
std::optional<double> median_if(const std::vector<double>& values) {
  return values.empty() ? std::nullopt : std::optional<double>(median_of(values));
}

// The first look at which the weights know something: the population's statistics give half of what they give at the end.
int64_t early_step(const LabSetup& setup, const Results& results) {
  const std::vector<int64_t> looks = looks_of(setup, kMainBatch);
  const auto end = median_if(accuracies(setup, results, kMainBatch, looks.back(), kPopulation));
  for (const int64_t step : looks) {
    const auto now = median_if(accuracies(setup, results, kMainBatch, step, kPopulation));
    if (now && end && at_least(*now, *end / 2)) return step;
  }
  return looks.back();
}

report::Chart step_chart(const LabSetup& setup, const Results& results) {
  report::Chart chart{.title = "Accuracy by step of training, by statistics",
                      .x_label = "step",
                      .y_label = "test accuracy",
                      .log_x = true,
                      .note = "The same weights in every column of points; trained in batches of 128."};
  for (const std::string& method : methods()) {
    report::Series series{.name = method};
    for (const int64_t step : looks_of(setup, kMainBatch))
      add_point(series, static_cast<double>(step), accuracies(setup, results, kMainBatch, step, method));
    chart.series.push_back(std::move(series));
  }
  return chart;
}

report::Chart batch_chart(const LabSetup& setup, const Results& results) {
  report::Chart chart{.title = "Accuracy at the end, by batch size in training",
                      .x_label = "batch size in training",
                      .y_label = "test accuracy",
                      .log_x = true};
  for (const std::string& method : methods()) {
    report::Series series{.name = method};
    for (const int64_t batch : batches_of(setup))
      add_point(series, static_cast<double>(batch),
                accuracies(setup, results, batch, looks_of(setup, batch).back(), method));
    chart.series.push_back(std::move(series));
  }
  return chart;
}

report::Chart test_batch_chart(const LabSetup& setup, const Results& results) {
  report::Chart chart{.title = "Accuracy by statistics of the test batch, by its size",
                      .x_label = "examples in a test batch",
                      .y_label = "test accuracy",
                      .log_x = true,
                      .note = setup.input().size() == 3
                                  ? "One example of a convolutional network has statistics over its own positions."
                                  : "A batch of one example, which has one value for each channel, is refused."};
  std::map<double, std::vector<double>> points;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    for (const Json& one : results.at(key_of(kMainBatch, seed))["test batches"]) {
      if (const auto value = number_in(one, "accuracy")) points[one["size"].get<double>()].push_back(*value);
    }
  }
  report::Series series{.name = "statistics of the batch"};
  for (const auto& [size, values] : points) add_point(series, size, values);
  chart.series.push_back(std::move(series));
  return chart;
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  const int64_t last = looks_of(setup, kMainBatch).back(), early = early_step(setup, results);
  const auto at = [&](int64_t step, const char* method) {
    return accuracies(setup, results, kMainBatch, step, method);
  };
  const auto end_ema = median_if(at(last, "ema 0.1")), end_population = median_if(at(last, kPopulation));
  const auto early_ema = median_if(at(early, "ema 0.1")), early_population = median_if(at(early, kPopulation));
  std::vector<double> dense_running, dense_twice, dense_answers;
  std::string refusal;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const Json& one = results.at(dense_key(seed));
    dense_running.push_back(number_in(one, "running").value_or(0));
    dense_twice.push_back(number_in(one, "twice").value_or(0));
    dense_answers.push_back(number_in(one, "different answers").value_or(0));
    refusal = one["refusal"].get<std::string>();
  }
  const std::vector<double> single_values = at(last, kSingle);
  const bool near = end_ema && end_population && at_most(*end_population - *end_ema, kNear);
  const bool late = early_ema && early_population && at_least(*early_population - *early_ema, kEarlyLoss);
  // Of a network that refuses a single example, only the doubled examples tell.
  const bool conv_loses =
      single_values.empty() || (end_population && at_least(*end_population - median_of(single_values), kSingleLoss));
  const bool dense_loses = at_least(median_of(dense_running) - median_of(dense_twice), kSingleLoss);
  const bool nonsense = conv_loses && dense_loses;

  const int right = static_cast<int>(near) + static_cast<int>(late) + static_cast<int>(nonsense);
  Outcome outcome;
  outcome.verdict = right == 3 ? Verdict::kHolds : right > 0 ? Verdict::kHoldsInPart : Verdict::kDoesNotHold;
  const auto percent = [](const std::optional<double>& value) {
    return value ? fmt::format("{:.1f} %", 100 * *value) : std::string("nothing (diverged)");
  };
  outcome.answer = fmt::format(
      "After {} steps the average with weight 0.1 reached {} and the population's statistics {}; after {} steps {} and "
      "{}. One example by its own statistics: {} in this network; in a dense one {} with {:g} different answers in "
      "all, "
      "where running statistics reach {}.",
      last, percent(end_ema), percent(end_population), early, percent(early_ema), percent(early_population),
      single_values.empty() ? "refused" : percent(median_of(single_values)), percent(median_of(dense_twice)),
      median_of(dense_answers), percent(median_of(dense_running)));
  for (const std::string& method : methods()) {
    const std::vector<double> values = accuracies(setup, results, kMainBatch, last, method);
    if (!values.empty())
      outcome.figures.push_back({.name = fmt::format("accuracy after {} steps, {}", last, method), .values = values});
  }
  for (const char* method : {"ema 0.1", kPopulation}) {
    if (!at(early, method).empty())
      outcome.figures.push_back(
          {.name = fmt::format("accuracy after {} steps, {}", early, method), .values = at(early, method)});
  }
  outcome.figures.push_back({.name = "dense network, running statistics", .values = dense_running});
  outcome.figures.push_back({.name = "dense network, every example twice as a batch", .values = dense_twice});
  outcome.charts = {step_chart(setup, results), batch_chart(setup, results), test_batch_chart(setup, results)};
  outcome.tables.push_back({.title = "A single example in a dense network, by statistics of the batch",
                            .header = {"what is asked", "what comes"},
                            .rows = {{"a batch of one example", refusal},
                                     {"a batch of one example given twice",
                                      fmt::format("every norm gives beta, whatever the example: {:g} different answers",
                                                  median_of(dense_answers))}}});
  return outcome;
}

}  // namespace

Experiment test_time_experiment() {
  return {
      .name = kName,
      .title = "Statistics at test time",
      .claim =
          "At test time an example must not depend on its neighbours, so statistics kept from training take the place "
          "of the batch's. An average over the steps of training does as well as statistics of the training set "
          "computed at the end, once training has gone on for a while; early in training it lags behind the weights. "
          "Statistics of a single example are no substitute.",
      .source = "Ioffe and Szegedy 2015, algorithm 2; Wu and Johnson 2021, section 3",
      .protocol =
          "The network is trained by plain SGD, rate 0.1, in batches of 128 for 200 steps (quick: 100), and in batches "
          "of "
          "8 and 32 (quick: 16) for as many. From the statistics of every step's batch several averages are kept in "
          "the "
          "same run: exponential with the weights 0.5, 0.1 and 0.01 of the new batch, begun at mean 0 and variance 1, "
          "and the plain average of all steps. At some steps the weights are tested with each of them, with the mean "
          "of the statistics of batches of 1,000 training examples, with the population's statistics of these, with "
          "the "
          "statistics of test batches of 256, and with those of each test example by itself. A dense network (mlp) "
          "after 100 steps (quick: 50) is given batches of one example, which it refuses, and batches that hold one "
          "example twice. Accuracy is that of 1,000 test examples (quick: 500), of the dense network that of 500.",
      .rule =
          "Three things are asked, in the median over seeds. At the end the average with weight 0.1 is at most 1 point "
          "behind the population's statistics. At the first look at which the population's statistics give half of "
          "their accuracy at the end, it is at least 5 points behind; earlier the weights know too little to tell. At "
          "the end, one example "
          "by its own statistics is at least 10 points behind the population's statistics where the network takes it, "
          "and an example given twice to the dense network at least 10 points behind its running statistics. Holds "
          "where all three are so; in part where one or two are.",
      .lesson =
          "In training, a norm uses the mean and variance of the batch. To answer for one picture there is no batch, "
          "so "
          "something must be remembered. The usual way is an exponential average: running = 0.9 running + 0.1 batch "
          "in every step. It begins with mean 0 and variance 1, which are forgotten after some 20 steps (with a weight "
          "of 0.01 after some 200: until then the answers may be useless although the weights are fine), and it is an "
          "average over weights that have changed since. Statistics made in one go from the training set with the "
          "final weights have neither fault. The norm of a dense layer has one value per channel for a single example: "
          "its mean is the value itself, what is left is 0, and every output is beta.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
