// Experiment: norms in front of the activation or behind it, with and without gamma and beta, with a bias that does nothing.
#include "evenkeel/lab/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/lab/curves.h"
#include "evenkeel/lab/sweep.h"

namespace evenkeel::lab {

BiasGradient bias_gradient(const Probe& probe, const ModelSpec& with_biases, const ModelSpec& without) {
  const auto names_of = [](const ModelSpec& spec) {
    std::vector<std::string> names;
    for (const ParameterInfo& parameter : build_network(spec, Mode::kTrain).parameters) names.push_back(parameter.name);
    return names;
  };
  const std::vector<std::string> needed = names_of(without);
  BiasGradient out;
  for (const std::string& name : names_of(with_biases)) {
    if (std::find(needed.begin(), needed.end(), name) != needed.end()) continue;
    const Tensor gradient = probe.gradient(name);
    out.biases += squared_norm(gradient);
    out.count += element_count(gradient.shape());
  }
  for (const NormLayer& norm : norm_layers(with_biases)) {
    if (norm.affine) out.betas += squared_norm(probe.gradient(norm.name + ".bias"));
  }
  out.biases = std::sqrt(out.biases);
  out.betas = std::sqrt(out.betas);
  return out;
}

void hold_affine(const ModelSpec& spec, ParameterStore& store, bool hold_gamma, bool hold_beta) {
  const auto fill = [&](const std::string& name, float value) {
    const auto values = store.writable(name).values<float>();
    std::fill(values.begin(), values.end(), value);
  };
  for (const NormLayer& norm : norm_layers(spec)) {
    if (!norm.affine) continue;
    if (hold_gamma) fill(norm.name + ".weight", 1);
    if (hold_beta) fill(norm.name + ".bias", 0);
  }
}

namespace {

constexpr int64_t kBatch = 128;
constexpr double kPoints = 0.5, kNoGradient = 1e-4;

enum class Variant { kBefore, kAfter, kPlain, kGammaOnly, kBetaOnly, kBias, kNone };
struct VariantWords {
  Variant variant;
  const char* key;
  const char* name;
};
constexpr VariantWords kVariants[] = {{Variant::kBefore, "before", "before the activation"},
                                      {Variant::kAfter, "after", "after the activation"},
                                      {Variant::kPlain, "plain", "before, no gamma, no beta"},
                                      {Variant::kGammaOnly, "gamma", "before, gamma only"},
                                      {Variant::kBetaOnly, "beta", "before, beta only"},
                                      {Variant::kBias, "bias", "before, with a bias in front"},
                                      {Variant::kNone, "none", "no norm"}};

struct Extent {
  std::vector<double> rates;
  int64_t steps;
};
Extent extent_of(const LabSetup& setup) {
  return setup.quick ? Extent{{0.1, 0.3}, 250} : Extent{{0.03, 0.1, 0.3, 1, 3}, 800};
}

void arrange(std::vector<LayerSpec>& layers, NormPlacement placement, bool bias) {
  for (LayerSpec& layer : layers) {
    layer.placement = placement;
    if (layer.type == "conv" || layer.type == "linear") layer.bias = bias ? std::optional(true) : std::nullopt;
    arrange(layer.body, placement, bias);
  }
}

ModelSpec network_of(const LabSetup& setup, Variant variant) {
  ModelSpec spec = setup.network(setup.input().size() == 3 ? "lenet" : "mlp");
  spec = normalized_by(std::move(spec), variant == Variant::kNone ? NormKind::kNone : NormKind::kBatch);
  spec.norm_options.affine = variant != Variant::kPlain;
  spec.init = Init::kHe;
  arrange(spec.layers, variant == Variant::kAfter ? NormPlacement::kAfter : NormPlacement::kBefore,
          variant == Variant::kBias);
  return spec;
}

Json bias_figures(const LabSetup& setup, Training& run) {
  std::vector<float> x;
  std::vector<int32_t> labels;
  run.next_batch(x, labels);
  Probe probe(run.model().spec, run.model().store, {.batch = kBatch, .threads = setup.threads, .layers = false});
  probe.run(x.data(), labels.data(), static_cast<int64_t>(labels.size()));
  const BiasGradient g = bias_gradient(probe, run.model().spec, network_of(setup, Variant::kBefore));
  return {{"count", g.count}, {"ratio", number(g.biases / g.betas)}};
}

Json run_trial(const LabSetup& setup, Variant variant, uint64_t seed, const std::vector<double>& rates) {
  std::vector<Json> ends;
  for (const double rate : rates) {
    Training run({.spec = network_of(setup, variant),
                  .learning_rate = rate,
                  .schedule = ScheduleKind::kCosine,
                  .batch = kBatch,
                  .steps = extent_of(setup).steps,
                  .seed = seed,
                  .threads = setup.threads},
                 *setup.splits);
    const bool hold_gamma = variant == Variant::kBetaOnly, hold_beta = variant == Variant::kGammaOnly;
    const Json start = variant == Variant::kBias ? bias_figures(setup, run) : Json();
    // Plain gradient descent has no memory: what is put back after every step was never learned.
    const RunEnd end = finish(run, [&] {
      if (hold_gamma || hold_beta) hold_affine(run.model().spec, run.model().store, hold_gamma, hold_beta);
    });
    Json one = json_of(end);
    one["rate"] = rate;
    one["test"] = end.diverged ? Json() : number(run.test().accuracy);
    if (variant == Variant::kBias) {
      one["start"] = start;
      one["end"] = end.diverged ? Json(start) : bias_figures(setup, run);
    }
    ends.push_back(std::move(one));
  }
  const double best = best_rate(rates, ends);
  return ends[static_cast<size_t>(std::find(rates.begin(), rates.end(), best) - rates.begin())];
}

std::string key_of(const char* variant, int64_t seed) { return fmt::format("{}/seed={}", variant, seed); }

std::vector<Trial> trials(const LabSetup& setup) {
  const Extent extent = extent_of(setup);
  const double one = 0.0032 * static_cast<double>(extent.steps);
  std::vector<Trial> list;
  for (const VariantWords& words : kVariants) require_trainable(network_of(setup, words.variant), kBatch);
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    for (const VariantWords& words : kVariants) {
      const std::string first = key_of(words.key, 1);
      const Variant variant = words.variant;
      list.push_back({key_of(words.key, seed), one * (seed == 1 ? static_cast<double>(extent.rates.size()) : 1.0),
                      [=](const Results& earlier) {
                        const std::vector<double> rates =
                            seed == 1 ? extent.rates : std::vector{earlier.at(first)["rate"].get<double>()};
                        return run_trial(setup, variant, static_cast<uint64_t>(seed), rates);
                      }});
    }
  }
  return list;
}

// In percent; a run that diverged has learned nothing.
Figure test_accuracy(const LabSetup& setup, const Results& results, const VariantWords& words) {
  Figure figure{.name = fmt::format("test accuracy, {}", words.name), .values = {}, .unit = "%"};
  const double chance = 1 / static_cast<double>(setup.classes());
  for (int64_t seed = 1; seed <= setup.seeds; ++seed)
    figure.values.push_back(100 * number_in(results.at(key_of(words.key, seed)), "test").value_or(chance));
  return figure;
}

bool is_better(const Figure& a, const Figure& b) {
  for (size_t i = 0; i < a.values.size(); ++i) {
    if (a.values[i] <= b.values[i]) return false;
  }
  return at_least(a.median() - b.median(), kPoints);
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  Outcome outcome;
  report::Chart chart{.title = "Test accuracy",
                      .x_label = "",
                      .y_label = "%",
                      .kind = report::ChartKind::kBar,
                      .note = "Medians over the repeats, each at its own best learning rate."};
  report::Table table{.title = "Best rates", .header = {"network", "rate", "test accuracy %"}, .rows = {}};
  report::Series series{.name = "test accuracy"};
  for (const VariantWords& words : kVariants) {
    Figure figure = test_accuracy(setup, results, words);
    chart.categories.emplace_back(words.name);
    series.x.push_back(static_cast<double>(series.x.size()));
    series.y.push_back(figure.median());
    table.rows.push_back({words.name, fmt::format("{:g}", results.at(key_of(words.key, 1))["rate"].get<double>()),
                          fmt::format("{:.2f}", figure.median())});
    outcome.figures.push_back(std::move(figure));
  }
  chart.series = {series};
  const auto figure_of = [&](Variant variant) -> const Figure& {
    return outcome.figures[static_cast<size_t>(variant)];  // in the order of kVariants
  };
  Figure bias{.name = "gradient of redundant biases", .values = {}, .unit = "of that of beta"};
  bool useless = true;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const Json& one = results.at(key_of("bias", seed));
    for (const char* when : {"start", "end"}) {
      const auto ratio = number_in(one[when], "ratio");
      useless = useless && ratio && at_most(*ratio, kNoGradient) && one[when]["count"].get<int64_t>() > 0;
      if (ratio) bias.values.push_back(*ratio);
    }
  }
  const Figure &before = figure_of(Variant::kBefore), &after = figure_of(Variant::kAfter),
               &plain = figure_of(Variant::kPlain);
  const bool in_front = is_better(before, after), affine = is_better(before, plain);
  const int parts = (useless ? 1 : 0) + (in_front ? 1 : 0) + (affine ? 1 : 0);
  outcome.verdict = parts == 3 ? Verdict::kHolds : parts > 0 ? Verdict::kHoldsInPart : Verdict::kDoesNotHold;
  outcome.answer = fmt::format(
      "Test accuracy: {:.2f} % with norms before the activation and {:.2f} % after it ({}); {:.2f} % without gamma and "
      "beta ({}). The gradient of the biases in front of norms is at most {:.2g} of that of beta.",
      before.median(), after.median(), in_front ? "before is better" : "not shown to be worse", plain.median(),
      affine ? "they help" : "not shown to help", bias.values.empty() ? 0.0 : bias.greatest());
  if (!bias.values.empty()) outcome.figures.push_back(std::move(bias));
  outcome.charts = {std::move(chart)};
  outcome.tables = {std::move(table)};
  return outcome;
}

}  // namespace

Experiment placement_experiment() {
  return {
      .name = "placement",
      .title = "Where the norm stands and what it learns",
      .claim =
          "Batch norm belongs between the weights and the activation; its gamma and beta help; and a bias in front of "
          "it does nothing, for it gets no gradient.",
      .source = "Ioffe and Szegedy 2015, sections 3 and 3.2",
      .protocol =
          "One network in seven forms: norms before the activation, after it, before it without gamma and beta, with "
          "gamma only, with beta only, with a bias in front, and no norms at all. Each is trained for 800 steps of "
          "plain gradient descent on batches of 128 from the same weights (He's rule) at 0.03, 0.1, 0.3, 1 and 3, "
          "which fall to 0 along a cosine; it keeps the rate with the best accuracy on its last 20 training batches "
          "(seed 1), the other seeds are run at that one. Measured: accuracy on the test set by running statistics; "
          "and on one batch before training and one after it, the norm of the gradient over all biases in front of "
          "norms, over the norm of that of all betas. Quick: 0.1 and 0.3, 250 steps.",
      .rule =
          "Three parts: before is better than after; with gamma and beta is better than without; the biases' gradient "
          "is at most 1e-4 of that of the betas in every repeat (rounding). Better is: in every repeat, and by half a "
          "point in the median. Holds where all three are so, in part where one or two are.",
      .lesson =
          "A norm takes the mean of its input away: whatever constant a bias adds goes with it, the loss does not "
          "depend on it, and its gradient is a sum of rounding errors. beta, which comes after, has taken its place. "
          "gamma and beta are less than they seem in front of a ReLU: a positive gamma could as well be multiplied "
          "into the weights of the next layer, so that beta, which decides how many inputs pass the gate, has most of "
          "the work. Before or after the activation is a matter in which the paper argues by shape (sums of many "
          "inputs look like a bell, what a ReLU lets through does not) and others have found the opposite; small "
          "differences between single runs prove neither. How small is small can be read off here: with the useless "
          "bias the network computes the same as without it, so that what lies between these two is rounding and "
          "chance alone.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
