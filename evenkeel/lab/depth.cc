// Experiment: signal and gradient through deep networks, by the scale of the weights: with and without batch norm.
#include "evenkeel/lab/depth.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "evenkeel/lab/sweep.h"

namespace evenkeel::lab {

LayerNorms layer_norms(Probe& probe, const float* x, const int32_t* labels, int64_t n) {
  probe.run(x, labels, n);
  LayerNorms norms;
  for (const ProbedLayer& layer : probe.layers()) {
    const Tensor input = probe.input_of(layer.name);
    norms.signal.push_back(std::sqrt(squared_norm(input) / static_cast<double>(element_count(input.shape()))));
    norms.gradient.push_back(std::sqrt(squared_norm(probe.input_gradient_of(layer.name))));
  }
  for (const std::string& name : probe.parameters()) {
    const Tensor gradient = probe.gradient(name);
    const bool matrix = gradient.shape().size() > 1, head = norms.weight_gradient.size() == norms.signal.size();
    if (matrix && !head) norms.weight_gradient.push_back(std::sqrt(squared_norm(gradient)));
  }
  return norms;
}

double growth_backwards(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  double mean = 0, covariance = 0, variance = 0;
  for (const double value : values) mean += std::log(value) / count;
  for (size_t i = 0; i < values.size(); ++i) {
    const double place = static_cast<double>(i) - (count - 1) / 2;
    covariance += place * (std::log(values[i]) - mean);
    variance += place * place;
  }
  return std::exp(-covariance / variance);
}

namespace {

constexpr int64_t kWidth = 100, kBatch = 128;
constexpr double kHe = std::numbers::sqrt2;
// A value that is 0 or not finite: about the range of single precision.
constexpr double kLost = 45;
constexpr double kKept = 1, kSpread = 2;  // decades
constexpr size_t kSettled = 10;           // layers until what comes in no longer looks like the data

struct Extent {
  std::vector<int64_t> depths, trained_depths;
  std::vector<double> scales, trained_scales, rates;
  int64_t steps;
};
Extent extent_of(const LabSetup& setup) {
  if (setup.quick) return {{5, 20, 50}, {5, 20, 50}, {0.01, kHe, 10}, {0.01, kHe, 10}, {0.01, 0.1, 1}, 75};
  return {{5, 10, 20, 30, 40, 50},           {5, 20, 50}, {0.01, 0.1, 1, kHe, 10}, {0.01, 1, kHe, 10},
          {0.0001, 0.001, 0.01, 0.1, 1, 10}, 250};
}

const char* kind_of(bool norm) { return norm ? "with" : "without"; }

ModelSpec tower(const LabSetup& setup, int64_t depth, bool norm, double scale) {
  ModelSpec spec;
  spec.name = "tower";
  spec.input = setup.input();
  spec.classes = setup.classes();
  spec.norm = norm ? NormKind::kBatch : NormKind::kNone;
  spec.init = Init::kNormal;
  spec.init_sigma = scale / std::sqrt(static_cast<double>(kWidth));
  if (spec.input.size() > 1) spec.layers.emplace_back().type = "flatten";
  for (int64_t i = 1; i <= depth + 1; ++i) {
    LayerSpec& layer = spec.layers.emplace_back();
    layer.type = "linear";
    layer.name = fmt::format("fc{}", i);
    layer.out = i <= depth ? kWidth : 0;
  }
  return spec;
}

struct Run {
  ModelSpec spec;
  Training training;

  Run(const LabSetup& setup, int64_t depth, bool norm, double scale, uint64_t seed, double rate, int64_t steps)
      : spec(tower(setup, depth, norm, scale)),
        training({.spec = spec,
                  .learning_rate = rate,
                  .batch = kBatch,
                  .steps = steps,
                  .seed = seed,
                  .threads = setup.threads},
                 *setup.splits) {
    // All weights were drawn for layers of kWidth inputs.
    const double factor = std::sqrt(static_cast<double>(kWidth) / static_cast<double>(element_count(setup.input())));
    for (float& value : training.model().store.writable("fc1.weight").values<float>())
      value = static_cast<float>(static_cast<double>(value) * factor);
  }
  Json look(int threads) {
    std::vector<float> x;
    std::vector<int32_t> labels;
    training.next_batch(x, labels);
    Probe probe(spec, training.model().store, {.batch = kBatch, .threads = threads});
    const LayerNorms norms = layer_norms(probe, x.data(), labels.data(), static_cast<int64_t>(labels.size()));
    const auto list = [](const std::vector<double>& values) {
      Json json = Json::array();
      for (const double value : values) json.push_back(number(value));
      return json;
    };
    return {
        {"signal", list(norms.signal)}, {"gradient", list(norms.gradient)}, {"weights", list(norms.weight_gradient)}};
  }
};

std::string start_key(int64_t depth, double scale, bool norm, int64_t seed) {
  return fmt::format("start/depth={}/scale={:.3g}/{}/seed={}", depth, scale, kind_of(norm), seed);
}
std::string train_key(int64_t depth, double scale, bool norm, int64_t seed) {
  return fmt::format("train/depth={}/scale={:.3g}/{}/seed={}", depth, scale, kind_of(norm), seed);
}

Json train_trial(const LabSetup& setup, int64_t depth, double scale, bool norm, uint64_t seed,
                 const std::vector<double>& rates) {
  std::vector<Json> ends;
  for (const double rate : rates) {
    Run run(setup, depth, norm, scale, seed, rate, extent_of(setup).steps);
    Json end = json_of(finish(run.training));
    end["rate"] = rate;
    end["after"] = run.training.diverged() ? Json() : run.look(setup.threads);
    ends.push_back(std::move(end));
  }
  const double best = best_rate(rates, ends);
  return ends[static_cast<size_t>(std::find(rates.begin(), rates.end(), best) - rates.begin())];
}

std::vector<Trial> trials(const LabSetup& setup) {
  const Extent extent = extent_of(setup);
  std::vector<Trial> list;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const auto s = static_cast<uint64_t>(seed);
    for (const int64_t depth : extent.depths) {
      for (const double scale : extent.scales) {
        for (const bool norm : {false, true}) {
          list.push_back({start_key(depth, scale, norm, seed), 0.002 * static_cast<double>(depth),
                          [=](const Results&) { return Run(setup, depth, norm, scale, s, 0, 1).look(setup.threads); }});
        }
      }
    }
    for (const int64_t depth : extent.trained_depths) {
      for (const double scale : extent.trained_scales) {
        for (const bool norm : {false, true}) {
          const double one = 0.0002 * static_cast<double>(depth * extent.steps);
          list.push_back({train_key(depth, scale, norm, seed),
                          one * (seed == 1 ? static_cast<double>(extent.rates.size()) : 1.0),
                          [=](const Results& earlier) {
                            const std::string first = train_key(depth, scale, norm, 1);
                            const std::vector<double> rates =
                                seed == 1 ? extent.rates : std::vector{earlier.at(first)["rate"].get<double>()};
                            return train_trial(setup, depth, scale, norm, s, rates);
                          }});
        }
      }
    }
  }
  return list;
}

// Decades between the greatest and the least of the layers behind the first, whose inputs are the data.
double span_of(const Json& values) {
  double least = 0, greatest = 0;
  for (size_t i = 1; i < values.size(); ++i) {
    if (!values[i].is_number() || values[i].get<double>() <= 0) return kLost;
    const double value = values[i].get<double>();
    least = i == 1 ? value : std::min(least, value);
    greatest = std::max(greatest, value);
  }
  return least > 0 ? std::min(kLost, std::log10(greatest / least)) : kLost;
}

template <class F>
double median_over_seeds(const LabSetup& setup, F f) {
  std::vector<double> values;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) values.push_back(f(seed));
  return *median_if_any(std::move(values));
}

report::Series by_layer(const std::string& name, const Json& values) {
  report::Series series{.name = name};
  for (size_t i = 0; i < values.size(); ++i) {
    if (!values[i].is_number()) continue;
    series.x.push_back(static_cast<double>(i + 1));
    series.y.push_back(values[i].get<double>());
  }
  return series;
}

// Of the deepest network, seed 1: a line for every scale.
report::Chart layer_chart(const LabSetup& setup, const Results& results, const char* key, const char* what, bool norm) {
  const Extent extent = extent_of(setup);
  const int64_t depth = extent.depths.back();
  report::Chart chart{.title = fmt::format("{} {} norm", what, kind_of(norm)),
                      .x_label = "layer",
                      .y_label = what,
                      .log_y = true,
                      .note = fmt::format("{} layers before training, by the scale of the weights; seed 1.", depth)};
  for (const double scale : extent.scales) {
    chart.series.push_back(
        by_layer(fmt::format("scale {:.3g}", scale), results.at(start_key(depth, scale, norm, 1))[key]));
  }
  return chart;
}

report::Chart trained_chart(const LabSetup& setup, const Results& results) {
  report::Chart chart{.title = "Gradient after training",
                      .x_label = "layer",
                      .y_label = "norm of the gradient",
                      .log_y = true,
                      .note = "Weights of scale sqrt 2, each network at its best learning rate; seed 1."};
  for (const int64_t depth : extent_of(setup).trained_depths) {
    for (const bool norm : {false, true}) {
      const Json& after = results.at(train_key(depth, kHe, norm, 1))["after"];
      if (after.is_object())
        chart.series.push_back(by_layer(fmt::format("{} layers, {}", depth, kind_of(norm)), after["gradient"]));
    }
  }
  return chart;
}

// With norm, by seed: the growth of the gradient from layer to layer of the deepest network.
Figure growth_figure(const LabSetup& setup, const Results& results, double scale) {
  const Extent extent = extent_of(setup);
  Figure figure{.name = fmt::format("growth of the gradient a layer, with norm, scale {:.3g}", scale),
                .values = {},
                .unit = "times"};
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const Json& gradient = results.at(start_key(extent.depths.back(), scale, true, seed))["gradient"];
    std::vector<double> values;
    for (size_t i = kSettled; i < gradient.size(); ++i) {
      if (gradient[i].is_number() && gradient[i].get<double>() > 0) values.push_back(gradient[i].get<double>());
    }
    if (values.size() > 1 && values.size() + kSettled == gradient.size())
      figure.values.push_back(growth_backwards(values));
  }
  return figure;
}

struct Started {
  int64_t cells = 0, with_signal_kept = 0, without_signal_spread = 0, with_gradient_kept = 0;
};
Started started(const LabSetup& setup, const Results& results, report::Table& table) {
  const Extent extent = extent_of(setup);
  Started s;
  for (const int64_t depth : extent.depths) {
    for (const double scale : extent.scales) {
      const auto span = [&](const char* key, bool norm) {
        return median_over_seeds(
            setup, [&](int64_t seed) { return span_of(results.at(start_key(depth, scale, norm, seed))[key]); });
      };
      const double without = span("signal", false), with = span("signal", true), gradient = span("gradient", true);
      ++s.cells;
      s.with_signal_kept += at_most(with, kKept) ? 1 : 0;
      s.without_signal_spread += !at_most(without, kSpread) ? 1 : 0;
      s.with_gradient_kept += at_most(gradient, kKept) ? 1 : 0;
      table.rows.push_back({std::to_string(depth), fmt::format("{:.3g}", scale), fmt::format("{:.2f}", without),
                            fmt::format("{:.2f}", with), fmt::format("{:.2f}", span("gradient", false)),
                            fmt::format("{:.2f}", gradient)});
    }
  }
  return s;
}

struct Learned {
  int64_t cells = 0, with = 0, without = 0, both = 0;
};
Learned learned(const LabSetup& setup, const Results& results, report::Table& table) {
  const Extent extent = extent_of(setup);
  // Half way from chance to all right.
  const double enough = (1 + 1 / static_cast<double>(setup.classes())) / 2;
  Learned l;
  for (const int64_t depth : extent.trained_depths) {
    for (const double scale : extent.trained_scales) {
      const auto accuracy = [&](bool norm) {
        return median_over_seeds(setup, [&](int64_t seed) {
          return number_in(results.at(train_key(depth, scale, norm, seed)), "accuracy").value_or(0);
        });
      };
      const auto rate = [&](bool norm) {
        return fmt::format("{:g}", results.at(train_key(depth, scale, norm, 1))["rate"].get<double>());
      };
      const double without = accuracy(false), with = accuracy(true);
      ++l.cells;
      l.with += with >= enough ? 1 : 0;
      l.without += without >= enough ? 1 : 0;
      l.both += with >= enough && without >= enough ? 1 : 0;
      table.rows.push_back({std::to_string(depth), fmt::format("{:.3g}", scale), fmt::format("{:.3f}", without),
                            fmt::format("{:.3f}", with), rate(false), rate(true)});
    }
  }
  return l;
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  report::Table spans{
      .title = "Before training: decades between the layers",
      .header = {"layers", "scale", "signal without", "signal with", "gradient without", "gradient with"},
      .rows = {}};
  report::Table ends{.title = "After training: accuracy on the last batches",
                     .header = {"layers", "scale", "without", "with", "rate without", "rate with"},
                     .rows = {}};
  const Started s = started(setup, results, spans);
  const Learned l = learned(setup, results, ends);
  const bool signal = s.with_signal_kept == s.cells && 2 * s.without_signal_spread >= s.cells;
  const bool gradient = s.with_gradient_kept == s.cells;
  const bool learns = l.both == l.without && l.without < l.cells && 2 * (l.with - l.both) >= l.cells - l.without;
  const int parts = (signal ? 1 : 0) + (gradient ? 1 : 0) + (learns ? 1 : 0);
  Outcome outcome;
  outcome.verdict = parts == 3 ? Verdict::kHolds : parts > 0 ? Verdict::kHoldsInPart : Verdict::kDoesNotHold;
  std::string growth = "could not be measured";
  for (const double scale : extent_of(setup).scales) {
    Figure figure = growth_figure(setup, results, scale);
    if (figure.values.empty()) continue;
    if (scale == kHe) growth = fmt::format("{:.3f}", figure.median());
    outcome.figures.push_back(std::move(figure));
  }
  outcome.answer = fmt::format(
      "Of {0} networks before training, the signal stays within a decade over all layers in {1} with norm, and spreads "
      "over more than two in {2} without; the gradient stays within a decade in {3} with norm. Of {4} trained, {5} "
      "learn with norm and {6} without. With norm the gradient's growth towards the input at scale sqrt 2, a layer, "
      "{7} ({8:.3f} by theory).",
      s.cells, s.with_signal_kept, s.without_signal_spread, s.with_gradient_kept, l.cells, l.with, l.without,
      growth == "could not be measured" ? growth : "is " + growth,
      std::sqrt(std::numbers::pi / (std::numbers::pi - 1)));
  for (const bool norm : {false, true}) {
    outcome.charts.push_back(layer_chart(setup, results, "signal", "Signal", norm));
    outcome.charts.push_back(layer_chart(setup, results, "gradient", "Gradient", norm));
    outcome.charts.push_back(layer_chart(setup, results, "weights", "Gradient of the weights", norm));
  }
  outcome.charts.push_back(trained_chart(setup, results));
  outcome.tables = {spans, ends};
  return outcome;
}

}  // namespace

Experiment depth_experiment() {
  return {
      .name = "depth",
      .title = "Deep networks and the scale of their weights",
      .claim =
          "Without a norm, signal and gradient are multiplied by the scale of the weights at every layer and vanish "
          "or explode in a deep network; with batch norm they keep their size, and networks learn whatever the scale "
          "of their first weights. The counterpart: at the start, batch norm itself makes the gradients of a deep "
          "plain network explode, by about 1.21 = sqrt(pi / (pi - 1)) a layer.",
      .source =
          "Ioffe and Szegedy 2015, section 3.3; Bjorck et al. 2018; the counterpart: Yang et al. 2019, \"A mean field "
          "theory of batch normalization\"",
      .protocol =
          "Plain networks of 5 to 50 layers of 100 ReLUs, weights normal with standard deviation scale / "
          "sqrt(inputs), scale from 0.01 to 10, sqrt 2 (He's rule) among them. Before training, on one batch of 128: "
          "for each layer the root mean square of what its weights give (the signal) and the norm of the gradient of "
          "the loss by it. The span is the number of decades between the greatest and the least layer, the first left "
          "out, whose inputs are the data; a value of 0 or not finite counts as 45 decades. The growth of the "
          "gradient is a line through its logarithm from layer 11 of the deepest network on. Networks of 5, 20 and 50 "
          "layers at the scales 0.01, 1, sqrt 2 and 10 are then trained by plain gradient descent for 250 steps at "
          "six rates from 0.0001 to 10; each keeps the rate with the best accuracy on the last 20 batches (seed 1), "
          "the other seeds are run at that one. Quick: fewer scales, depths and rates, 75 steps.",
      .rule =
          "Medians over the seeds. Three parts: the signal's span is at most 1 decade with norm in all networks and "
          "more than 2 without in at least half of them; the gradient's span with norm is at most 1 decade in all; "
          "with norm all networks learn that do so without, and at least half of those that do not. To learn is to "
          "come at least half of the way from chance to 100 %. Holds where all three do, in part where one or two do. "
          "The growth a layer is a figure beside it.",
      .lesson =
          "A signal that is multiplied by 0.7 at every layer is 2e-8 of itself after fifty; by 7, it is no longer a "
          "number. Started by He's rule (scale sqrt 2 for ReLUs) the factor is 1 at the start and a norm is not "
          "needed for that; with a norm, nobody has to know the rule: what comes out of it has variance 1 whatever "
          "went in. Backwards it is another matter. A ReLU halves the power of a gradient, the norm divides by the "
          "variance of what came in, and for a ReLU's output, of which the mean is taken away, that is (pi - 1) / (2 "
          "pi) of the weights' scale squared: together pi / (pi - 1) = 1.47 in power, 1.21 in size, at each layer, "
          "whatever the scale. Fifty layers make that ten thousand. Residual connections, which every deep network "
          "has today, take it away. One thing more, seen in the charts: without a norm the gradients of the weights "
          "are about equal in all layers at any scale, for each is the product of the signal in front and the "
          "gradient behind. What vanishes then is all of them at once.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
