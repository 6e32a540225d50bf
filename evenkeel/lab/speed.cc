// Experiment: how much sooner a network with batch norm comes to an accuracy, and what the last hidden layer sees meanwhile.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "evenkeel/lab/curves.h"
#include "evenkeel/train/probe.h"

namespace evenkeel::lab {
namespace {

constexpr double kTwice = 2;
constexpr const char* kNorms[] = {"none", "batch"};
constexpr int64_t kGridSeed = 0;  // not one of those that are measured: the choice of a rate gains nothing by luck
constexpr int64_t kWatched = 500;

// The network of section 4.1: three hidden layers of 100 sigmoids.
ModelSpec sigmoid_network(const LabSetup& setup) {
  ModelSpec spec;
  spec.name = "3x100 sigmoid";
  spec.input = setup.input();
  spec.classes = setup.classes();
  spec.activation = Activation{ActivationKind::kSigmoid};
  spec.init = Init::kXavier;
  spec.layers.resize(4);
  for (LayerSpec& layer : spec.layers) layer.type = "linear";
  for (size_t i = 0; i < 3; ++i) spec.layers[i].out = 100;
  if (setup.input().size() == 1) return spec;
  LayerSpec flatten;
  flatten.type = "flatten";
  spec.layers.insert(spec.layers.begin(), flatten);
  return spec;
}

// One of the two networks that are compared with and without the norm.
struct Subject {
  std::string key;
  std::vector<double> rates;
  int64_t batch = 128, steps = 100, every = 10;
  double cost = 1;
};
std::vector<Subject> subjects(bool quick) {
  return {{.key = "sigmoid",
           .rates = quick ? std::vector<double>{0.3, 1, 3} : std::vector<double>{0.1, 0.3, 1, 3, 10},
           .batch = 60,
           .steps = quick ? 1000 : 4000,
           .every = 20,
           .cost = quick ? 1.7 : 7},
          {.key = "network",
           .rates = quick ? std::vector<double>{0.1, 0.3, 1} : std::vector<double>{0.03, 0.1, 0.3, 1, 3},
           .batch = 128,
           .steps = quick ? 80 : 240,
           .every = quick ? 5 : 8,
           .cost = quick ? 2.2 : 7}};
}

std::string grid_key(const std::string& subject, const std::string& norm, double rate) {
  return fmt::format("{}/{}/rate={}", subject, norm, rate);
}
std::string seed_key(const std::string& subject, const std::string& norm, int64_t seed) {
  return fmt::format("{}/{}/seed={}", subject, norm, seed);
}

// The mean of the last three measurements; 0 for a run that did not come to its end.
double final_accuracy(const Json& curve) {
  const std::vector<double> accuracy = numbers_of(curve["accuracy"]);
  if (curve["diverged"] || accuracy.empty()) return 0;
  const auto last = static_cast<std::ptrdiff_t>(std::min<size_t>(3, accuracy.size()));
  return std::accumulate(accuracy.end() - last, accuracy.end(), 0.0) / static_cast<double>(last);
}

// What the network without the norm comes to at its best rate, in whole percent: noise of a measurement would move the end of a flat curve.
double target_of(const Subject& subject, const Results& results) {
  double best = 0;
  for (const double rate : subject.rates)
    best = std::max(best, final_accuracy(results.at(grid_key(subject.key, "none", rate))));
  return std::floor(best * 100) / 100;
}

// The seconds of one step; 0 where not even the first steps went well.
double step_seconds(const Json& curve) {
  const double steps = curve["steps"].back().get<double>();
  return steps > 0 ? curve["seconds"].back().get<double>() / steps : 0;
}

struct Reached {
  double steps = 0, seconds = 0;
};
std::optional<Reached> reached(const Json& curve, double target) {
  const std::vector<double> accuracy = numbers_of(curve["accuracy"]);
  for (size_t i = 0; i < accuracy.size(); ++i)
    if (accuracy[i] >= target) return Reached{curve["steps"][i].get<double>(), curve["seconds"][i].get<double>()};
  return std::nullopt;
}

// The rate that takes the fewest steps to the target without diverging later, and of several the one that is best at the end; where none gets there, that one.
double best_rate(const Subject& subject, const Results& results, const std::string& norm) {
  const double target = target_of(subject, results);
  double best = subject.rates.front(), best_steps = INFINITY, best_accuracy = -1;
  for (const double rate : subject.rates) {
    const Json& curve = results.at(grid_key(subject.key, norm, rate));
    const std::optional<Reached> there = curve["diverged"] ? std::nullopt : reached(curve, target);
    const double steps = there ? there->steps : INFINITY, accuracy = final_accuracy(curve);
    if (steps > best_steps || (steps == best_steps && accuracy <= best_accuracy)) continue;
    best = rate;
    best_steps = steps;
    best_accuracy = accuracy;
  }
  return best;
}

// What goes into the activations of the last hidden layer for the same examples, again and again: percentiles of every unit.
class InputWatch {
 public:
  explicit InputWatch(const data::Dataset& examples) : examples_(examples) {}

  void look(Training& run) {
    const int64_t n = std::min(kWatched, examples_.count);
    if (!probe_) {
      const data::BatchReader reader(examples_, run.standardization());
      std::vector<int64_t> order(static_cast<size_t>(n));
      std::iota(order.begin(), order.end(), 0);
      x_.resize(order.size() * static_cast<size_t>(reader.example_size()));
      labels_.resize(order.size());
      reader.read(order, 1, 1, x_.data(), labels_.data());
      probe_ = std::make_unique<Probe>(run.model().spec, run.model().store,
                                       ProbeSettings{.batch = n, .threads = 1, .outputs = true});
    }
    probe_->run(x_.data(), labels_.data(), n);
    const ProbedLayer& layer = probe_->layers().back();
    const Tensor input = layer.is_norm ? probe_->output_of(layer.name) : probe_->input_of(layer.name);
    const auto values = input.values<float>();
    const size_t units = values.size() / static_cast<size_t>(n);
    std::vector<Percentiles> now;
    std::vector<double> one(static_cast<size_t>(n));
    for (size_t unit = 0; unit < units; ++unit) {
      for (size_t i = 0; i < one.size(); ++i) one[i] = static_cast<double>(values[i * units + unit]);
      now.push_back(percentiles_of(one));
      if (!std::isfinite(now.back().p50)) return;
    }
    steps_.push_back(run.steps_done());
    seen_.push_back(std::move(now));
  }

  // {"unit", "steps", "low", "median", "high", "swing"}: swing is how far the median of a unit wandered, in units of its mean width between the two
  // percentiles; the unit is the one whose swing is the median of all.
  Json json() const {
    const size_t units = seen_.empty() ? 0 : seen_.front().size();
    std::vector<std::pair<double, size_t>> swings;
    for (size_t unit = 0; unit < units; ++unit) {
      double least = INFINITY, greatest = -INFINITY, width = 0;
      for (const auto& at : seen_) {
        least = std::min(least, at[unit].p50);
        greatest = std::max(greatest, at[unit].p50);
        width += (at[unit].p85 - at[unit].p15) / static_cast<double>(seen_.size());
      }
      swings.emplace_back(width > 0 ? (greatest - least) / width : 0, unit);
    }
    if (swings.empty()) return nullptr;
    std::sort(swings.begin(), swings.end());
    const auto [swing, typical] = swings[swings.size() / 2];
    Json json{{"unit", typical},      {"swing", swing},          {"steps", steps_},
              {"low", Json::array()}, {"median", Json::array()}, {"high", Json::array()}};
    for (const auto& at : seen_) {
      json["low"].push_back(at[typical].p15);
      json["median"].push_back(at[typical].p50);
      json["high"].push_back(at[typical].p85);
    }
    return json;
  }

 private:
  const data::Dataset& examples_;
  std::unique_ptr<Probe> probe_;
  std::vector<float> x_;
  std::vector<int32_t> labels_;
  std::vector<int64_t> steps_;
  std::vector<std::vector<Percentiles>> seen_;
};

Json curve_of(const LabSetup& setup, const Subject& subject, const ModelSpec& spec, double rate, int64_t seed,
              bool watch) {
  InputWatch inputs(setup.splits->test);
  CurveSettings settings{.training = {.spec = spec,
                                      .learning_rate = rate,
                                      .batch = subject.batch,
                                      .steps = subject.steps,
                                      .seed = static_cast<uint64_t>(seed),
                                      .threads = setup.threads},
                         .every = subject.every};
  if (watch) settings.look = [&](Training& run) { inputs.look(run); };
  Json json = train_curve(settings, *setup.splits);
  if (watch) json["inputs"] = inputs.json();
  return json;
}

std::vector<Trial> trials(const LabSetup& setup) {
  std::vector<Trial> list;
  for (const Subject& subject : subjects(setup.quick)) {
    const bool sigmoid = subject.key == "sigmoid";
    const ModelSpec spec = sigmoid ? sigmoid_network(setup) : usual_network(setup);
    const auto own = [&](const std::string& norm) {
      return normalized_by(spec, norm == "none" ? NormKind::kNone : NormKind::kBatch);
    };
    for (const std::string norm : kNorms) {
      require_trainable(own(norm), subject.batch);
      for (const double rate : subject.rates) {
        list.push_back(
            {grid_key(subject.key, norm, rate), subject.cost, [setup, subject, spec = own(norm), rate](const Results&) {
               return curve_of(setup, subject, spec, rate, kGridSeed, false);
             }});
      }
    }
    // Side by side, so that a machine that is slower for a while is so for both.
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      for (const std::string norm : kNorms) {
        list.push_back({seed_key(subject.key, norm, seed), subject.cost,
                        [setup, subject, spec = own(norm), norm, seed, sigmoid](const Results& earlier) {
                          return curve_of(setup, subject, spec, best_rate(subject, earlier, norm), seed,
                                          /*watch=*/sigmoid);
                        }});
      }
    }
  }
  return list;
}

// The two sides of one network: how soon both come to the target, seed by seed.
struct Comparison {
  std::string network;
  double target = 0;
  Figure steps = {}, seconds = {};  // without over with
  bool bound = false;               // a run without the norm missed the target: more than was measured
  bool missed_without = true;       // no run without the norm came to the target
  std::vector<report::Chart> charts = {};
  std::vector<std::vector<std::string>> rows = {};
};
Comparison compare(const LabSetup& setup, const Subject& subject, const Results& results) {
  Comparison c{.network = results.at(seed_key(subject.key, "none", 1))["network"].get<std::string>(),
               .target = target_of(subject, results)};
  c.steps = {.name = c.network + ": steps to the target, without over with", .values = {}, .unit = "times"};
  c.seconds = {.name = c.network + ": seconds to the target, without over with", .values = {}, .unit = "times"};
  report::Chart curves{.title = fmt::format("{}: accuracy by steps", c.network),
                       .x_label = "steps",
                       .y_label = "test accuracy",
                       .note = "Each at its own best learning rate; dashed: the target."};
  report::Chart grid{.title = fmt::format("{}: accuracy at the end by learning rate", c.network),
                     .x_label = "learning rate",
                     .y_label = "test accuracy",
                     .log_x = true,
                     .note = "The grid that the best rates were chosen from; 0: came to a value that is not finite."};
  std::vector<std::vector<Reached>> sides;  // what never got there has taken all there was, at least
  for (const std::string norm : kNorms) {
    const std::string words = norm == "none" ? "without the norm" : "with the norm";
    std::vector<std::vector<double>> lines;
    std::vector<double> x, steps, seconds, final;
    sides.emplace_back();
    int64_t missed = 0;
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      const Json& curve = results.at(seed_key(subject.key, norm, seed));
      lines.push_back(numbers_of(curve["accuracy"]));
      const std::vector<double> own = numbers_of(curve["steps"]);
      if (own.size() > x.size()) x = own;
      const std::optional<Reached> there = reached(curve, c.target);
      missed += there ? 0 : 1;
      c.bound = c.bound || (!there && norm == "none");
      c.missed_without = c.missed_without && (!there || norm != "none");
      // No division by the 0 steps of a target that needs no training. Steps that were not taken cost as much as those that were.
      sides.back().push_back(
          there ? Reached{std::max(there->steps, 1.0), std::max(there->seconds, 1e-3)}
                : Reached{norm == "none" ? static_cast<double>(subject.steps) : INFINITY,
                          norm == "none" ? static_cast<double>(subject.steps) * step_seconds(curve) : INFINITY});
      if (there) steps.push_back(there->steps);
      if (there) seconds.push_back(there->seconds);
      final.push_back(final_accuracy(curve));
    }
    curves.series.push_back(median_line(words, x, lines));
    report::Series by_rate{.name = words};
    for (const double rate : subject.rates) {
      by_rate.x.push_back(rate);
      by_rate.y.push_back(final_accuracy(results.at(grid_key(subject.key, norm, rate))));
    }
    grid.series.push_back(by_rate);
    c.rows.push_back({c.network, words, fmt::format("{:g}", best_rate(subject, results, norm)),
                      steps.empty() ? "not reached" : fmt::format("{:g}", median_of(steps)),
                      seconds.empty() ? "not reached" : fmt::format("{:.2f}", median_of(seconds)),
                      fmt::format("{:.1f} %", 100 * median_of(final)), std::to_string(missed)});
  }
  for (size_t i = 0; i < sides[0].size(); ++i) {
    c.steps.values.push_back(sides[0][i].steps / sides[1][i].steps);
    c.seconds.values.push_back(sides[0][i].seconds / sides[1][i].seconds);
  }
  curves.series.push_back(
      {.name = "target", .x = {0, static_cast<double>(subject.steps)}, .y = {c.target, c.target}, .dashed = true});
  c.charts = {curves, grid};
  return c;
}

// "2 times fewer steps", "1.5 times as many seconds". ratio: without over with.
std::string times(double ratio, const char* what) {
  return ratio >= 1 ? fmt::format("{:.3g} times fewer {}", ratio, what)
                    : fmt::format("{:.3g} times as many {}", 1 / ratio, what);
}

std::string answer_of(const Comparison& c) {
  const std::string target = fmt::format("{}: {:.3g} %", c.network, 100 * c.target);
  if (c.steps.median() == 0 && c.missed_without) return target + " is reached neither with the norm nor without it. ";
  if (c.steps.median() == 0) return target + " is not reached with the norm. ";
  return fmt::format("{} is reached in {}{} and {} with the norm. ", target,
                     c.bound && c.steps.median() >= 1 ? "at least " : "", times(c.steps.median(), "steps"),
                     times(c.seconds.median(), "seconds"));
}

// What a typical sigmoid of the last hidden layer sees, with the norm and without it: charts and figures. Returns whether its median wanders
// less with the norm, for every seed.
bool add_inputs(const LabSetup& setup, const Results& results, Outcome& outcome) {
  std::vector<std::vector<double>>
      ways;  // of both sides, seed by seed; not a number where there was nothing to be measured
  for (const std::string norm : kNorms) {
    const std::string words = norm == "none" ? "without the norm" : "with the norm";
    ways.emplace_back();
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      const Json& curve = results.at(seed_key("sigmoid", norm, seed));
      const bool measured = curve.contains("inputs") && !curve["inputs"].is_null();
      ways.back().push_back(measured ? number_of(curve["inputs"].at("swing")) : std::nan(""));
      if (!measured || seed > 1) continue;
      const Json& inputs = curve["inputs"];
      outcome.charts.push_back(
          {.title = "Input of a sigmoid of the last hidden layer, " + words,
           .x_label = "steps",
           .y_label = "input",
           .series = {{.name = "median; 15th to 85th percentile",
                       .x = numbers_of(inputs["steps"]),
                       .y = numbers_of(inputs["median"]),
                       .low = numbers_of(inputs["low"]),
                       .high = numbers_of(inputs["high"])}},
           .note =
               "Seed 1, of the same 500 test examples; the unit whose median wanders as far as the median unit's."});
    }
    outcome.figures.push_back({.name = "way of the median input of a sigmoid, " + words,
                               .values = ways.back(),
                               .unit = "its width from the 15th to the 85th percentile"});
  }
  bool steadier = true;
  for (size_t i = 0; i < ways[0].size(); ++i) steadier = steadier && ways[1][i] < ways[0][i];
  if (std::isnan(median_of(ways[0])) || std::isnan(median_of(ways[1]))) {
    outcome.answer += " The inputs of the last hidden layer could not be compared.";
    return false;
  }
  outcome.answer += fmt::format(
      " The median input of a sigmoid of the last hidden layer wandered by {:.2g} of its width with the norm and "
      "{:.2g} "
      "without it{}.",
      median_of(ways[1]), median_of(ways[0]), steadier ? ", less for every seed" : "");
  return steadier;
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  Outcome outcome;
  report::Table table{
      .title = "To the target",
      .header = {"network", "", "learning rate", "steps", "seconds", "accuracy at the end", "seeds that missed it"}};
  int twice = 0, sooner = 0, cheaper = 0, all = 0;
  for (const Subject& subject : subjects(setup.quick)) {
    Comparison c = compare(setup, subject, results);
    ++all;
    twice += at_least(c.steps.median(), kTwice) ? 1 : 0;
    sooner += c.steps.median() > 1 ? 1 : 0;
    cheaper += c.seconds.median() > 1 ? 1 : 0;
    outcome.answer += answer_of(c);
    outcome.figures.push_back(c.steps);
    outcome.figures.push_back(c.seconds);
    outcome.charts.insert(outcome.charts.end(), c.charts.begin(), c.charts.end());
    table.rows.insert(table.rows.end(), c.rows.begin(), c.rows.end());
  }
  outcome.answer.pop_back();
  const bool steadier = add_inputs(setup, results, outcome);
  outcome.verdict = twice == all && cheaper == all && steadier ? Verdict::kHolds
                    : sooner > 0 || steadier                   ? Verdict::kHoldsInPart
                                                               : Verdict::kDoesNotHold;
  outcome.tables = {table};
  return outcome;
}

}  // namespace

Experiment speed_experiment() {
  return {
      .name = "speed",
      .title = "Steps to an accuracy",
      .claim =
          "A network with batch norm comes to the accuracy of one without it in less than half of the steps, and what "
          "comes into its last hidden layer stays steadier while it learns.",
      .source = "Ioffe and Szegedy 2015, sections 4.1 and 4.2",
      .protocol =
          "Two networks, each with batch norm and without any norm: three hidden layers of 100 sigmoids as in section "
          "4.1 (batches of 60, weights by Xavier's rule, 4000 steps), and the network asked for, else cnn (batches of "
          "128, 240 steps); when quick, 1000 and 80 steps. Plain gradient descent at a constant rate. With the norm "
          "and without it the same five rates (quick: three) are tried with one seed. The target is the accuracy that "
          "the network without the norm comes to at its best rate, mean of the last three measurements, in whole "
          "percent. The best rate of each is the one with the fewest steps to the target; with it all seeds are run, "
          "which are others than the seed of the grid. Accuracy is measured on the first 2000 test examples every 20 "
          "and 8 (quick: 20 and 5) steps, by the running statistics; the seconds are as many times the median step. At "
          "the same steps the inputs of the last hidden layer's sigmoids are taken for 500 test examples: how far does "
          "the median of a unit wander in the run, in units of its mean width from the 15th to the 85th percentile? "
          "The typical unit, the median of all, stands for the layer.",
      .rule =
          "Steps without the norm over steps with it, seed by seed; a run without the norm that never gets to the "
          "target counts with all its steps and as many times the seconds of one, one with the norm as 0 times as "
          "fast. Inputs are steadier where the typical sigmoid's median wanders less with the norm for every seed. "
          "Holds where for both networks the median is at least 2 and the seconds, too, are fewer in the median, and "
          "inputs are steadier; in part where steps are fewer for one network at least, or inputs are steadier.",
      .lesson =
          "A sigmoid has a slope only near 0: where its inputs drift away, no gradient comes back. Without a norm the "
          "inputs of the last hidden layer follow from all weights below; they begin nearly the same for all "
          "examples, and much of the training goes by until they spread. With a norm they have a mean and a width of "
          "their own from the first step, so that all layers get a gradient at once. Two things should be watched "
          "when such curves are compared. Each network needs its own best learning rate: batch norm can take larger "
          "ones, and at a rate that suits only one of the two the other looks worse than it is. And a step with the "
          "norm is dearer, so that fewer steps need not mean less time.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
