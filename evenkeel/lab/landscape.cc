// Experiment: is the loss smoother with batch norm? Along the gradient, at points of a training run.
#include "evenkeel/lab/landscape.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "evenkeel/lab/curves.h"
#include "evenkeel/lab/sweep.h"

namespace evenkeel::lab {

double Landscape::loss_range() const {
  double least = loss, greatest = loss;
  for (const double value : losses) {
    if (!std::isfinite(value)) return value;
    least = std::min(least, value);
    greatest = std::max(greatest, value);
  }
  return greatest - least;
}

Landscape landscape_at(Probe& probe, ParameterStore& store, const float* x, const int32_t* labels, int64_t n,
                       const std::vector<double>& rates) {
  const std::vector<std::string>& names = probe.parameters();
  Landscape out;
  out.loss = probe.run(x, labels, n);
  std::vector<Tensor> weights, gradients;
  double squares = 0;
  for (const std::string& name : names) {
    weights.push_back(store.at(name).clone());
    gradients.push_back(probe.gradient(name).clone());
    squares += squared_norm(gradients.back());
  }
  out.gradient_norm = std::sqrt(squares);
  for (const double rate : rates) {
    for (size_t p = 0; p < names.size(); ++p) {
      const auto values = store.writable(names[p]).values<float>();
      const auto from = weights[p].values<float>(), along = gradients[p].values<float>();
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(static_cast<double>(from[i]) - rate * static_cast<double>(along[i]));
    }
    out.losses.push_back(probe.run(x, labels, n));
    double change = 0;
    for (size_t p = 0; p < names.size(); ++p) {
      const Tensor there = probe.gradient(names[p]);
      const std::span<const float> a = there.values<float>(), b = gradients[p].values<float>();
      for (size_t i = 0; i < a.size(); ++i)
        change += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    }
    change = std::sqrt(change);
    // Not std::max, which would pass over NaN.
    if (!(change <= out.gradient_change)) out.gradient_change = change;
    const double slope = change / (rate * out.gradient_norm);
    if (!(slope <= out.smoothness)) out.smoothness = slope;
  }
  for (size_t p = 0; p < names.size(); ++p) {
    const auto values = store.writable(names[p]).values<float>();
    const auto from = weights[p].values<float>();
    std::copy(from.begin(), from.end(), values.begin());
  }
  return out;
}

namespace {

constexpr int64_t kBatch = 128;
constexpr double kMultiples[] = {0.5, 1, 2, 4};  // of the learning rate
constexpr double kFactor = 1.25;

struct Extent {
  std::vector<double> rates;
  int64_t sweep_steps, steps, every;
};
Extent extent_of(const LabSetup& setup) {
  return setup.quick ? Extent{{0.03, 0.1, 0.3}, 30, 40, 10} : Extent{{0.01, 0.03, 0.1, 0.3}, 75, 150, 15};
}

// The paper's networks were deep (VGG): eight convolutions in three sizes of image, narrow to be quick; for tables eight linear layers.
ModelSpec deep_network(const LabSetup& setup) {
  ModelSpec spec;
  spec.name = "deep";
  spec.input = setup.input();
  spec.classes = setup.classes();
  const bool image = spec.input.size() == 3;
  int64_t size = image ? std::min(spec.input[1], spec.input[2]) : 0;
  const auto add = [&](const char* type) -> LayerSpec& {
    LayerSpec& layer = spec.layers.emplace_back();
    layer.type = type;
    return layer;
  };
  for (const int64_t out : {16, 16, 0, 32, 32, 0, 64, 64, 64, 64}) {
    if (out == 0) {
      if (size >= 4) add("max_pool");
      size /= 2;
      continue;
    }
    LayerSpec& layer = add(image ? "conv" : "linear");
    layer.out = image ? out : 100;
    layer.padding = image ? 1 : 0;
  }
  if (image) add("global_avg_pool");
  add("linear");
  return spec;
}

// The networks that are looked at; the one asked for, where one was.
std::vector<std::string> networks(const LabSetup& setup) {
  return setup.model ? std::vector<std::string>{"given"} : std::vector<std::string>{"shallow", "deep"};
}

ModelSpec network_of(const LabSetup& setup, const std::string& network, bool norm) {
  ModelSpec spec = network == "deep" ? deep_network(setup) : setup.network(setup.input().size() == 3 ? "cnn" : "mlp");
  spec = normalized_by(std::move(spec), norm ? NormKind::kBatch : NormKind::kNone);
  spec.init = Init::kHe;  // the better start for a network of ReLUs without a norm
  return spec;
}

Json sweep_trial(const LabSetup& setup, const std::string& network) {
  const Extent extent = extent_of(setup);
  Json runs = Json::array();
  std::vector<Json> ends;
  for (const double rate : extent.rates) {
    Training run({.spec = network_of(setup, network, false),
                  .learning_rate = rate,
                  .batch = kBatch,
                  .steps = extent.sweep_steps,
                  .seed = 1,
                  .threads = setup.threads},
                 *setup.splits);
    ends.push_back(json_of(finish(run)));
    Json one = ends.back();
    one["rate"] = rate;
    runs.push_back(std::move(one));
  }
  return {{"rate", best_rate(extent.rates, ends)}, {"runs", runs}};
}

// Training at one rate, looked at every so many steps on the batch that comes next.
Json path_trial(const LabSetup& setup, const std::string& network, bool norm, uint64_t seed, double rate) {
  const Extent extent = extent_of(setup);
  const ModelSpec spec = network_of(setup, network, norm);
  Training run({.spec = spec,
                .learning_rate = rate,
                .batch = kBatch,
                .steps = extent.steps,
                .seed = seed,
                .threads = setup.threads},
               *setup.splits);
  Probe probe(spec, run.model().store, {.batch = kBatch, .threads = setup.threads, .layers = false});
  std::vector<double> rates;
  for (const double multiple : kMultiples) rates.push_back(multiple * rate);
  Json points = Json::array();
  std::vector<float> x;
  std::vector<int32_t> labels;
  const auto look = [&] {
    if (run.steps_done() % extent.every != 0 || run.steps_done() >= extent.steps) return;
    run.next_batch(x, labels);
    const Landscape l =
        landscape_at(probe, run.model().store, x.data(), labels.data(), static_cast<int64_t>(labels.size()), rates);
    double least = l.loss, greatest = l.loss;
    for (const double loss : l.losses) {
      least = std::min(least, loss);
      greatest = std::max(greatest, loss);
    }
    points.push_back({{"step", run.steps_done()},
                      {"loss", number(l.loss)},
                      {"least", number(least)},
                      {"greatest", number(greatest)},
                      {"range", number(l.loss_range())},
                      {"change", number(l.gradient_change)},
                      {"relative", number(l.gradient_change / l.gradient_norm)},
                      {"smoothness", number(l.smoothness)}});
  };
  look();
  Json json = json_of(finish(run, look));
  json["points"] = std::move(points);
  return json;
}

std::string rates_key(const std::string& network) { return fmt::format("rates/{}", network); }
std::string path_key(const std::string& network, bool norm, int64_t seed) {
  return fmt::format("path/{}/{}/seed={}", network, norm ? "with" : "without", seed);
}

std::vector<Trial> trials(const LabSetup& setup) {
  const Extent extent = extent_of(setup);
  const double per_step = 0.035, looks = 5 * static_cast<double>(extent.steps) / static_cast<double>(extent.every);
  std::vector<Trial> list;
  for (const std::string& network : networks(setup)) {
    for (const bool norm : {false, true}) require_trainable(network_of(setup, network, norm), kBatch);
    list.push_back({rates_key(network),
                    static_cast<double>(extent.sweep_steps) * static_cast<double>(extent.rates.size()) * per_step,
                    [=](const Results&) { return sweep_trial(setup, network); }});
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      for (const bool norm : {false, true}) {
        list.push_back({path_key(network, norm, seed), (static_cast<double>(extent.steps) + looks) * per_step,
                        [=](const Results& earlier) {
                          return path_trial(setup, network, norm, static_cast<uint64_t>(seed),
                                            earlier.at(rates_key(network))["rate"].get<double>());
                        }});
      }
    }
  }
  return list;
}

struct Measure {
  const char* key;
  const char* name;
  bool judged;
};
constexpr Measure kMeasures[] = {{"range", "range of the loss along the gradient", true},
                                 {"change", "change of the gradient", true},
                                 {"smoothness", "effective smoothness", true},
                                 {"relative", "change of the gradient, over its norm", false}};

std::optional<double> median_at(const Json& path, const std::string& key) {
  std::vector<double> values;
  for (const Json& point : path["points"]) {
    if (const auto value = number_in(point, key)) values.push_back(*value);
  }
  return median_if_any(std::move(values));
}

report::Chart chart_of(const Results& results, const std::string& network, const Measure& measure) {
  report::Chart chart{.title = fmt::format("{}, {} network", measure.name, network),
                      .x_label = "step",
                      .y_label = measure.name,
                      .log_y = true,
                      .note = "Seed 1."};
  for (const bool norm : {false, true}) {
    report::Series series{.name = norm ? "with norm" : "without"};
    for (const Json& point : results.at(path_key(network, norm, 1))["points"]) {
      const auto value = number_in(point, measure.key);
      if (!value) continue;
      series.x.push_back(point["step"].get<double>());
      series.y.push_back(*value);
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

// The loss and how far it goes along the gradient.
report::Chart loss_chart(const Results& results, const std::string& network) {
  report::Chart chart{.title = fmt::format("Loss along the gradient, {} network", network),
                      .x_label = "step",
                      .y_label = "loss",
                      .log_y = true,
                      .note = "Seed 1. The band is the range of the loss over steps of half to four times the rate."};
  for (const bool norm : {false, true}) {
    report::Series series{.name = norm ? "with norm" : "without"};
    for (const Json& point : results.at(path_key(network, norm, 1))["points"]) {
      const auto loss = number_in(point, "loss"), low = number_in(point, "least"), high = number_in(point, "greatest");
      if (!loss || !low || !high) continue;
      series.x.push_back(point["step"].get<double>());
      series.y.push_back(*loss);
      series.low.push_back(*low);
      series.high.push_back(*high);
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  Outcome outcome;
  int better = 0, judged = 0;
  for (const std::string& network : networks(setup)) {
    std::string words;
    outcome.charts.push_back(loss_chart(results, network));
    for (const Measure& measure : kMeasures) {
      Figure ratio{
          .name = fmt::format("{} network, {}: without / with", network, measure.name), .values = {}, .unit = "times"};
      bool in_all = true;
      for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
        const auto without = median_at(results.at(path_key(network, false, seed)), measure.key);
        const auto with = median_at(results.at(path_key(network, true, seed)), measure.key);
        const bool known = without && with && *with > 0;
        in_all = in_all && known && at_least(*without / *with, kFactor);
        if (known) ratio.values.push_back(*without / *with);
      }
      if (measure.judged) {
        ++judged;
        better += in_all ? 1 : 0;
      }
      outcome.charts.push_back(chart_of(results, network, measure));
      if (ratio.values.empty()) continue;
      words += fmt::format("{}{} {:.3g}", words.empty() ? "" : ", ", measure.name, ratio.median());
      outcome.figures.push_back(std::move(ratio));
    }
    outcome.answer += fmt::format("The {} network at learning rate {:g}, without norm over with norm: {}. ", network,
                                  results.at(rates_key(network))["rate"].get<double>(),
                                  words.empty() ? "nothing could be measured" : words);
  }
  outcome.verdict = better == judged ? Verdict::kHolds : better > 0 ? Verdict::kHoldsInPart : Verdict::kDoesNotHold;
  outcome.answer +=
      fmt::format("{} of {} measures are less with norm by {} times or more in every repeat.", better, judged, kFactor);
  return outcome;
}

}  // namespace

Experiment landscape_experiment() {
  return {
      .name = "landscape",
      .title = "How smooth the loss is",
      .claim =
          "Batch norm makes the loss smoother along the path of training: a step along the gradient changes the loss "
          "more predictably, and the gradient found there is closer to the one that led there.",
      .source = "Santurkar et al. 2018, section 3.1 and figure 4",
      .protocol =
          "Two networks, or the one given: the zoo's cnn of three convolutions (tables: mlp), and a narrow plain one "
          "of eight (tables: linear layers), for the claim was made of deep networks. Each with batch norm and "
          "without any, both started by He's rule and trained by plain gradient descent on batches of 128 at one "
          "learning rate: the best of 0.01, 0.03, 0.1 and 0.3 for the network without norm (accuracy on the last 20 "
          "of 75 steps, seed 1). Before every 15th of 150 steps, on the batch that comes next, the weights are moved "
          "along the gradient by 0.5, 1, 2 and 4 times the rate, statistics of the batch being part of the function. "
          "Measured: the greatest loss less the least; the greatest distance between the gradient there and here; the "
          "same over the length of the step, which is the effective smoothness; and, not judged, the distance over "
          "the norm of the gradient. Points that are not finite are left out, which favours the network that has "
          "them. Quick: 0.03, 0.1 and 0.3 for 30 steps, then every tenth of 40.",
      .rule =
          "By the median over the points of a run, for each network: a measure is better where it is less with norm "
          "by a factor of at least 1.25 in every repeat. Holds where the first three are better in all networks, in "
          "part where one is in one of them; otherwise it does not.",
      .lesson =
          "Gradient descent trusts a straight line: it looks at the slope under its feet and jumps. That works as far "
          "as the slope stays the same. Effective smoothness measures how fast it changes on the way; learning rates "
          "much above 2 over that number overshoot. One caution when reading such figures: a norm makes the loss "
          "blind to the scale of the weights in front of it, so that larger weights have smaller gradients and a "
          "flatter landscape without being any better. That is why the change of the gradient is also shown over its "
          "own norm. Another: gradient descent at a fixed rate tends to end up where the smoothness is about 2 over "
          "that rate, whatever the network (Cohen et al. 2021), so that two networks which both train well at one "
          "rate look alike by this measure.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
