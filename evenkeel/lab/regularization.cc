// Experiment: the noise of the statistics of a batch, how large it is, and whether it regularizes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/lab/batch_noise.h"
#include "evenkeel/lab/forward.h"
#include "evenkeel/lab/lab.h"
#include "evenkeel/lab/training.h"
#include "evenkeel/lab/values.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::lab {
namespace {

constexpr const char* kName = "regularization";

// --- The noise, measured and predicted ---

constexpr int64_t kPopulation = 512;
std::vector<int64_t> noise_batches(const LabSetup& setup) {
  return setup.quick ? std::vector<int64_t>{8, 32, 128} : std::vector<int64_t>{8, 16, 32, 64, 128, 256};
}

Json json_of(const Noise& noise, int64_t batch) {
  return {{"batch", batch},
          {"mean", number(noise.mean)},
          {"variance", number(noise.variance)},
          {"predicted_mean", number(noise.predicted_mean)},
          {"predicted_variance", number(noise.predicted_variance)},
          {"naive_mean", number(noise.naive_mean)}};
}

// The first norm of the network after 50 steps, whose input depends on no other norm, and the last one.
Json noise_trial(const LabSetup& setup, const ModelSpec& spec, uint64_t seed) {
  Training run(
      {.spec = spec, .learning_rate = 0.1, .steps = setup.quick ? 20 : 50, .seed = seed, .threads = setup.threads},
      *setup.splits);
  while (run.step()) {
  }
  const data::Dataset population = drawn_part(setup.splits->train, kPopulation);
  const std::vector<NormLayer> norms = norm_layers(spec);
  struct Part {
    const char* name;
    std::string norm;
    int draws;
  };
  // The channels of pictures are much alike: draws enough for a sampling error of 2 % even where only one of them counts.
  const std::vector<Part> parts = {{"first", norms.front().name, 1000},
                                   {"last", norms.back().name, setup.quick ? 50 : 200}};
  Json json = Json::object();
  for (const Part& part : parts) {
    NoiseMeter meter(run.model(), population,
                     {.norm = part.norm, .population = kPopulation, .threads = setup.threads, .seed = seed});
    Json points = Json::array();
    for (const int64_t batch : noise_batches(setup)) {
      if (batch <= meter.population()) points.push_back(json_of(meter.measure(batch, part.draws), batch));
    }
    json[part.name] = std::move(points);
  }
  return json;
}

// --- The gap between training and test ---

const std::vector<double> kRates = {0.01, 0.03, 0.1, 0.3};
constexpr uint64_t kRateSeed = 1000;
constexpr int64_t kGhostBatch = 128, kSmallGhost = 16;

enum class With { kPlain, kDropout, kDecay };
const char* name_of(With with) {
  return with == With::kPlain ? "plain" : with == With::kDropout ? "dropout" : "weight decay";
}
struct Condition {
  bool norm = true;
  int64_t batch = 128, ghost = 0;
  With with = With::kPlain;
};

std::vector<int64_t> batches_of(const LabSetup& setup) {
  return setup.quick ? std::vector<int64_t>{16, 128} : std::vector<int64_t>{8, 32, 128};
}
std::vector<int64_t> ghosts_of(const LabSetup& setup) {
  return setup.quick ? std::vector<int64_t>{kSmallGhost, kGhostBatch}
                     : std::vector<int64_t>{4, 8, kSmallGhost, 32, 64, kGhostBatch};
}
int64_t examples_of(const LabSetup& setup) {
  return std::min<int64_t>(setup.quick ? 1000 : 2000, setup.splits->train.count / 2);
}

// Few examples, so that there is something to overfit; as many more choose the learning rate.
data::Splits small_splits(const LabSetup& setup) {
  const int64_t n = examples_of(setup);
  data::Splits splits;
  splits.train = drawn_part(setup.splits->train, n);
  splits.validation = drawn_part(setup.splits->train, n, n);
  splits.test = drawn_part(setup.splits->test, setup.quick ? 1000 : 2000);
  return splits;
}

ModelSpec spec_of(const LabSetup& setup, const Condition& condition) {
  ModelSpec spec = setup.network("mlp");
  require_norms(spec, kName);
  if (!condition.norm) spec.norm = NormKind::kNone;
  spec.norm_options.ghost_batch = condition.norm && condition.ghost < condition.batch ? condition.ghost : 0;
  if (condition.with == With::kDropout) {
    LayerSpec dropout;
    dropout.type = "dropout";
    spec.layers.insert(spec.layers.end() - 1, dropout);
  }
  return spec;
}

Json train_condition(const LabSetup& setup, const Condition& condition, double rate, uint64_t seed, bool choosing) {
  const data::Splits splits = small_splits(setup);
  const int64_t epochs = setup.quick ? 8 : 20, batch = std::min(condition.batch, splits.train.count);
  OptimizerOptions optimizer{.kind = OptimizerKind::kMomentum};
  if (condition.with == With::kDecay) optimizer.weight_decay = 5e-3;
  Training run({.spec = spec_of(setup, condition),
                .optimizer = optimizer,
                .learning_rate = rate,
                .schedule = ScheduleKind::kCosine,
                .batch = batch,
                .steps = epochs * (splits.train.count / batch),
                .seed = seed,
                .threads = setup.threads},
               splits);
  while (run.step()) {
  }
  Json json{{"rate", rate}, {"score", nullptr}};
  // All are tested with statistics of the whole training set: what differs is the noise in training.
  if (run.diverged() || !take_population_statistics(run.model(), splits.train, splits.train.count, setup.threads))
    return json;
  if (choosing) {
    json["score"] = number(evaluate(run.model(), splits.validation, {.threads = setup.threads}).accuracy);
    return json;
  }
  const EvalResult train = run.train(splits.train.count), test = run.test();
  json["gap"] = number(test.loss - train.loss);
  json["train_accuracy"] = number(train.accuracy);
  json["test_accuracy"] = number(test.accuracy);
  return json;
}

std::string rate_prefix(bool norm, int64_t batch) {
  return fmt::format("rate/{}/batch={}/", norm ? "norm" : "none", batch);
}
std::string gap_key(const Condition& c, int64_t seed) {
  return fmt::format("gap/{}/batch={}/ghost={}/{}/seed={}", c.norm ? "norm" : "none", c.batch, c.ghost, name_of(c.with),
                     seed);
}
std::vector<std::string> networks_of(const LabSetup& setup) {
  return setup.input().size() == 3 ? std::vector<std::string>{"dense", "conv"} : std::vector<std::string>{"dense"};
}
std::string noise_key(const std::string& network, int64_t seed) {
  return fmt::format("noise/{}/seed={}", network, seed);
}

std::vector<Trial> trials(const LabSetup& setup) {
  std::vector<Trial> list;
  for (const std::string& network : networks_of(setup)) {
    const ModelSpec spec = zoo_model(network == "dense" ? "mlp" : "cnn", setup.input(), setup.classes());
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      list.push_back({noise_key(network, seed), (network == "dense" ? 2.0 : 9.0) / (setup.quick ? 2 : 1),
                      [=](const Results&) { return noise_trial(setup, spec, static_cast<uint64_t>(seed)); }});
    }
  }
  const auto cost = [&](int64_t batch) { return (setup.quick ? 0.2 : 0.6) * (batch < 32 ? 2 : 1); };
  const auto add = [&](const Condition& condition) {
    require_trainable(spec_of(setup, condition), std::min(condition.batch, examples_of(setup)));
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      list.push_back({gap_key(condition, seed), cost(condition.batch), [=](const Results& earlier) {
                        const double rate = best_rate(earlier, rate_prefix(condition.norm, condition.batch), kRates);
                        return train_condition(setup, condition, rate, static_cast<uint64_t>(seed), false);
                      }});
    }
  };
  for (const int64_t batch : batches_of(setup)) {
    for (const bool norm : {true, false}) {
      const Condition condition{.norm = norm, .batch = batch, .ghost = 0};
      for (const double rate : kRates) {
        list.push_back({rate_key(rate_prefix(norm, batch), rate), cost(batch),
                        [=](const Results&) { return train_condition(setup, condition, rate, kRateSeed, true); }});
      }
      for (const With with : {With::kPlain, With::kDropout, With::kDecay})
        add({.norm = norm, .batch = batch, .ghost = 0, .with = with});
    }
  }
  for (const int64_t ghost : ghosts_of(setup)) add({.norm = true, .batch = kGhostBatch, .ghost = ghost});
  return list;
}

// --- Conclusions ---

constexpr double kMeanTolerance = 0.1, kVarianceTolerance = 0.2;
constexpr double kDropoutMargin = 0.005;  // of test accuracy: what single runs differ by without any reason

// Values of one name of a condition, a run each; runs that diverged leave none.
std::vector<double> values_of(const LabSetup& setup, const Results& results, const Condition& condition,
                              const std::string& name) {
  std::vector<double> values;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    if (const auto value = number_in(results.at(gap_key(condition, seed)), name)) values.push_back(*value);
  }
  return values;
}
// The same seed by seed; nothing where the run diverged.
std::vector<std::optional<double>> by_seed(const LabSetup& setup, const Results& results, const Condition& condition,
                                           const std::string& name) {
  std::vector<std::optional<double>> values;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed)
    values.push_back(number_in(results.at(gap_key(condition, seed)), name));
  return values;
}
// Of every seed a less b, where both are there.
std::vector<double> differences(const std::vector<std::optional<double>>& a,
                                const std::vector<std::optional<double>>& b) {
  std::vector<double> values;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] && b[i]) values.push_back(*a[i] - *b[i]);
  }
  return values;
}
// What dropout adds to the test accuracy at batches of 128, seed by seed.
std::vector<std::optional<double>> dropout_gains(const LabSetup& setup, const Results& results, bool norm) {
  Condition condition{.norm = norm, .batch = kGhostBatch, .ghost = 0};
  const auto plain = by_seed(setup, results, condition, "test_accuracy");
  condition.with = With::kDropout;
  std::vector<std::optional<double>> gains = by_seed(setup, results, condition, "test_accuracy");
  for (size_t i = 0; i < gains.size(); ++i)
    gains[i] = gains[i] && plain[i] ? std::optional(*gains[i] - *plain[i]) : std::nullopt;
  return gains;
}
bool all_above(const std::vector<double>& values, int64_t count) {
  return static_cast<int64_t>(values.size()) == count &&
         std::all_of(values.begin(), values.end(), [](double value) { return value > 0; });
}
double median_or_0(const std::vector<double>& values) { return values.empty() ? 0 : median_of(values); }

// Measured over predicted, of all batch sizes and seeds of the first norms.
struct NoiseRatios {
  std::vector<double> mean, variance;
};
NoiseRatios noise_ratios(const LabSetup& setup, const Results& results) {
  NoiseRatios ratios;
  for (const std::string& network : networks_of(setup)) {
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      for (const Json& point : results.at(noise_key(network, seed))["first"]) {
        const auto ratio = [&](const char* measured, const char* predicted) {
          const auto m = number_in(point, measured), p = number_in(point, predicted);
          return m && p && *p > 0 ? *m / *p : 0;
        };
        ratios.mean.push_back(ratio("mean", "predicted_mean"));
        ratios.variance.push_back(ratio("variance", "predicted_variance"));
      }
    }
  }
  return ratios;
}

report::Chart noise_chart(const LabSetup& setup, const Results& results, const std::string& network) {
  report::Chart chart{
      .title = fmt::format("Noise of the batch mean, {} layers", network),
      .x_label = "batch size",
      .y_label = "standard deviations",
      .log_x = true,
      .log_y = true,
      .note =
          "First norm: its input depends on no other norm. Last norm: in every batch the norms below have given their "
          "channels a mean of 0 and a variance of 1, which takes most of the noise of independent examples away."};
  const auto add = [&](const char* norm, const char* what, const char* name, bool dashed) {
    std::map<double, std::vector<double>> points;
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      for (const Json& point : results.at(noise_key(network, seed))[norm]) {
        if (const auto value = number_in(point, what)) points[point["batch"].get<double>()].push_back(*value);
      }
    }
    report::Series series{.name = name, .dashed = dashed};
    for (const auto& [batch, values] : points) add_point(series, batch, values);
    chart.series.push_back(std::move(series));
  };
  add("first", "mean", "first norm, measured", false);
  add("first", "predicted_mean", "first norm, predicted", true);
  add("last", "mean", "last norm, measured", false);
  add("last", "predicted_mean", "last norm, predicted", true);
  if (network != "dense") add("first", "naive_mean", "1 / sqrt(values per channel)", true);
  return chart;
}

report::Chart gap_chart(const LabSetup& setup, const Results& results) {
  report::Chart chart{.title = "Loss of the test set less that of the training set, by batch size",
                      .x_label = "batch size",
                      .y_label = "difference of losses",
                      .log_x = true,
                      .note = "Norms are tested with statistics of the whole training set."};
  for (const bool norm : {true, false}) {
    for (const With with : {With::kPlain, With::kDropout, With::kDecay}) {
      report::Series series{.name = fmt::format("{}, {}", norm ? "norm" : "no norm", name_of(with)), .dashed = !norm};
      for (const int64_t batch : batches_of(setup)) {
        add_point(series, static_cast<double>(batch),
                  values_of(setup, results, {.norm = norm, .batch = batch, .ghost = 0, .with = with}, "gap"));
      }
      chart.series.push_back(std::move(series));
    }
  }
  return chart;
}

report::Chart ghost_chart(const LabSetup& setup, const Results& results, const char* what, report::Chart chart) {
  report::Series series{.name = "norm"};
  for (const int64_t ghost : ghosts_of(setup)) {
    add_point(series, static_cast<double>(ghost),
              values_of(setup, results, {.norm = true, .batch = kGhostBatch, .ghost = ghost}, what));
  }
  chart.series.push_back(std::move(series));
  return chart;
}

report::Table accuracy_table(const LabSetup& setup, const Results& results) {
  report::Table table{.title = "Median accuracy on training and test examples, %",
                      .header = {"norm", "batch", "with", "training", "test", "learning rate"}};
  for (const bool norm : {true, false}) {
    for (const int64_t batch : batches_of(setup)) {
      for (const With with : {With::kPlain, With::kDropout, With::kDecay}) {
        const Condition condition{.norm = norm, .batch = batch, .ghost = 0, .with = with};
        const auto of = [&](const char* what) { return median_or_0(values_of(setup, results, condition, what)); };
        table.rows.push_back({norm ? "batch" : "none", std::to_string(batch), name_of(with),
                              fmt::format("{:.1f}", 100 * of("train_accuracy")),
                              fmt::format("{:.1f}", 100 * of("test_accuracy")), fmt::format("{:g}", of("rate"))});
      }
    }
  }
  return table;
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  const NoiseRatios ratios = noise_ratios(setup, results);
  const auto within = [](const std::vector<double>& values, double tolerance) {
    return std::all_of(values.begin(), values.end(), [&](double v) { return at_most(std::abs(v - 1), tolerance); });
  };
  const bool predicted = within(ratios.mean, kMeanTolerance) && within(ratios.variance, kVarianceTolerance);

  const Condition small{.norm = true, .batch = kGhostBatch, .ghost = kSmallGhost};
  const Condition whole{.norm = true, .batch = kGhostBatch, .ghost = kGhostBatch};
  const auto of = [&](const Condition& c, const char* what) { return values_of(setup, results, c, what); };
  const std::vector<double> small_gap = of(small, "gap"), whole_gap = of(whole, "gap");
  const bool narrows =
      all_above(differences(by_seed(setup, results, whole, "gap"), by_seed(setup, results, small, "gap")), setup.seeds);
  const double small_test = median_or_0(of(small, "test_accuracy")),
               whole_test = median_or_0(of(whole, "test_accuracy"));
  const bool helps = small_test > whole_test;

  const auto gains_norm = dropout_gains(setup, results, true), gains_none = dropout_gains(setup, results, false);
  const std::vector<double> less_needed = differences(gains_none, gains_norm);
  const bool replaces = all_above(less_needed, setup.seeds) && at_least(median_of(less_needed), kDropoutMargin);

  const int right =
      static_cast<int>(predicted) + static_cast<int>(narrows) + static_cast<int>(helps) + static_cast<int>(replaces);
  Outcome outcome;
  outcome.verdict = right == 4 ? Verdict::kHolds : right >= 2 ? Verdict::kHoldsInPart : Verdict::kDoesNotHold;
  const auto spread = [](const std::vector<double>& v) {
    const auto [least, greatest] = std::minmax_element(v.begin(), v.end());
    return v.empty() ? std::string("nothing") : fmt::format("{:.2f} to {:.2f}", *least, *greatest);
  };
  const auto known = [](const std::vector<std::optional<double>>& all) {
    std::vector<double> values;
    for (const auto& value : all) {
      if (value) values.push_back(100 * *value);
    }
    return values;
  };
  const auto points = [&](const std::vector<std::optional<double>>& all) {
    const std::vector<double> values = known(all);
    if (values.empty()) return std::string("nothing (diverged)");
    const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
    return fmt::format("{:+.1f} [{:+.1f} to {:+.1f}]", median_of(values), *least, *greatest);
  };
  outcome.answer = fmt::format(
      "The noise of the batch mean was {} times the predicted one, that of the variance {} times. With statistics of "
      "{} "
      "examples in batches of {} the gap between test and training loss was {:.3f}, of all {} {:.3f}; test accuracy "
      "was "
      "{:.1f} % and {:.1f} %. Dropout brought {} points with norm and {} without.",
      spread(ratios.mean), spread(ratios.variance), kSmallGhost, kGhostBatch, median_or_0(small_gap), kGhostBatch,
      median_or_0(whole_gap), 100 * small_test, 100 * whole_test, points(gains_norm), points(gains_none));
  const auto figure = [&](Figure f) {
    if (!f.values.empty()) outcome.figures.push_back(std::move(f));
  };
  figure({.name = "noise of the batch mean, measured over predicted", .values = ratios.mean});
  figure({.name = "noise of the batch variance, measured over predicted", .values = ratios.variance});
  figure({.name = "gap of the losses, statistics of 16 of 128", .values = small_gap});
  figure({.name = "gap of the losses, statistics of all 128", .values = whole_gap});
  figure({.name = "test accuracy, statistics of 16 of 128", .values = of(small, "test_accuracy")});
  figure({.name = "test accuracy, statistics of all 128", .values = of(whole, "test_accuracy")});
  figure({.name = "what dropout adds to test accuracy with norm", .values = known(gains_norm), .unit = "points"});
  figure({.name = "what dropout adds without norm", .values = known(gains_none), .unit = "points"});
  for (const std::string& network : networks_of(setup)) outcome.charts.push_back(noise_chart(setup, results, network));
  outcome.charts.push_back(gap_chart(setup, results));
  outcome.charts.push_back(ghost_chart(setup, results, "gap",
                                       {.title = "Gap of the losses by examples that share statistics",
                                        .x_label = "examples that share statistics, in batches of 128",
                                        .y_label = "difference of losses",
                                        .log_x = true}));
  outcome.charts.push_back(ghost_chart(setup, results, "test_accuracy",
                                       {.title = "Test accuracy by examples that share statistics",
                                        .x_label = "examples that share statistics, in batches of 128",
                                        .y_label = "test accuracy",
                                        .log_x = true}));
  outcome.tables.push_back(accuracy_table(setup, results));
  return outcome;
}

}  // namespace

Experiment regularization_experiment() {
  return {
      .name = kName,
      .title = "The noise of the batch",
      .claim =
          "An example is normalized by a mean and a variance that depend on the other examples of its batch. This "
          "noise "
          "falls as one over the square root of the batch size and acts as a regularizer: smaller batches of "
          "statistics "
          "narrow the gap between training and test, and dropout is needed less.",
      .source = "Ioffe and Szegedy 2015, section 3.4; Luo et al. 2019; Hoffer et al. 2017 (ghost batches)",
      .protocol =
          "Noise: a dense network (mlp) and, for pictures, a convolutional one (cnn) after 50 steps (quick: 20). From "
          "512 examples, 1,000 batches of each size from 8 to 256 (quick: 8, 32 and 128) are drawn with replacement "
          "and run through the network. The standard deviations of their means and variances, in units of each "
          "channel's own and root mean square over the channels, are compared with a prediction from the examples one "
          "by one: for dense layers sigma / sqrt(batch), for convolutions the standard deviation of the examples' "
          "means over sqrt(batch), since the positions of a picture are not independent; for the variance the same "
          "with squared distances from the mean. The rule takes the first norm, whose input no other norm disturbs; "
          "the last one is shown (200 batches; quick: 50). Gap: the network (mlp) learns from 2,000 examples for 20 "
          "epochs (quick: 1,000 for 8), momentum 0.9, cosine schedule, in batches of 8, 32 and 128 (quick: 16 and "
          "128), with and without norms, plain, with dropout 0.5 before the last layer and with weight decay 0.005, at "
          "the best of the rates 0.01, 0.03, 0.1 and 0.3 for each batch size with and without norm, chosen without "
          "dropout and decay by the accuracy on other examples with another seed. At batches of 128, statistics are "
          "also those of 4 to 64 examples that share them: there nothing differs but the noise. All are tested with "
          "statistics of the whole training set.",
      .rule =
          "Four things are asked. The noise of the mean is within 10 % of the prediction, and that of the variance "
          "within 20 %, at all sizes and seeds. The gap of the losses is smaller with statistics of 16 examples than "
          "of all 128, for every seed. Test accuracy is then higher, in the median. Dropout adds less to test accuracy "
          "with norm than without, at batches of 128, for every seed and by half a point in the median. Holds where "
          "all four are so; in part where at least two are.",
      .lesson =
          "In training, the output for a picture depends on which other pictures happen to be in its batch. The mean "
          "of m independent values has a standard deviation of sigma / sqrt(m): a quarter of the batch doubles the "
          "noise. A convolution has many positions in every picture, but they resemble each other and count for few "
          "independent values. Norms further up receive less of this noise than independent examples would give them, "
          "since in every batch what comes from the norms below has a mean of 0 and a variance of 1. Noise that a "
          "network cannot learn by heart makes it rely on what holds for many examples, as dropout does. It also makes "
          "the fit worse: below some size the noise costs more than it gives. And small batches have a noise of their "
          "own, that of the gradient, which is there without norms, too; only ghost batches tell the two apart. Weight "
          "decay means something else with norms: the scale of a weight in front of a norm does nothing, so decay "
          "changes the effective learning rate.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
