// Experiment: what gamma and beta can do. They can give the input back, and a larger gamma makes the variance larger.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/core/rng.h"
#include "evenkeel/lab/experiment.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/probe.h"

namespace evenkeel::lab {
namespace {

constexpr int64_t kExamples = 256, kFeatures = 8, kHidden = 6, kClasses = 3;
constexpr double kEps = 1e-5;

// x -> norm -> relu -> linear, and the values that go in.
struct Case {
  ModelSpec spec;
  ParameterStore store;
  std::vector<float> x;
  std::vector<int32_t> labels;

  explicit Case(uint64_t seed) {
    spec.name = "identity";
    spec.input = {kFeatures};
    spec.classes = kClasses;
    spec.layers.resize(3);
    for (LayerSpec& layer : spec.layers) layer.type = "linear";
    spec.layers[0].out = spec.layers[1].out = kHidden;
    spec.activation = Activation{ActivationKind::kTanh};
    initialize(build_network(spec, Mode::kTrain), seed, &store);
    RandomStream random(seed, RandomUse::kProbe);
    for (int64_t i = 0; i < kExamples * kFeatures; ++i)
      x.push_back(3 * random.next_uniform() + static_cast<float>(i % kFeatures));
    for (int64_t i = 0; i < kExamples; ++i) labels.push_back(static_cast<int32_t>(i % kClasses));
  }
  Probe probe() { return {spec, store, {.batch = kExamples, .threads = 1}}; }
  double run(Probe& probe) { return probe.run(x.data(), labels.data(), kExamples); }
};

// gamma * (x - mean) / sqrt(var + eps) + beta for a channel, and its variance.
struct Normalized {
  double largest_error = 0;  // against the input, over its standard deviation
  double variance = 0;
};
Normalized normalize(const Tensor& input, const Moments& moments, int64_t channel, double gamma, double beta) {
  const double rstd = 1 / std::sqrt(moments.var_population() + kEps), sd = std::sqrt(moments.var_population());
  const auto values = input.values<float>();
  Normalized out;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < kExamples; ++i) {
    const auto x = static_cast<double>(values[static_cast<size_t>(i * kHidden + channel)]);
    const double y = gamma * (x - moments.mean) * rstd + beta;
    out.largest_error = std::max(out.largest_error, std::abs(y - x) / sd);
    sum += y;
    squares += y * y;
  }
  const double mean = sum / kExamples;
  out.variance = squares / kExamples - mean * mean;
  return out;
}

Json identity_trial(uint64_t seed) {
  Case c(seed);
  Probe probe = c.probe();
  c.run(probe);
  const Tensor input = probe.input_of("bn1");
  const std::vector<Moments> moments = probe.moments_of("bn1");
  Json json{{"error", 0.0}, {"gammas", Json::array()}};
  double worst = 0;
  for (int64_t channel = 0; channel < kHidden; ++channel) {
    const Moments& m = moments[static_cast<size_t>(channel)];
    worst = std::max(worst, normalize(input, m, channel, std::sqrt(m.var_population() + kEps), m.mean).largest_error);
  }
  json["error"] = worst;
  for (const double gamma : {0.25, 0.5, 1.0, 2.0, 4.0})
    json["gammas"].push_back({{"gamma", gamma}, {"variance", normalize(input, moments[0], 0, gamma, 0).variance}});
  return json;
}

// Gradients of gamma and beta against differences of the loss: the worst relative error, norm by norm.
Json gradient_trial(uint64_t seed) {
  Case c(seed);
  Probe probe = c.probe();
  double worst = 0;
  for (const std::string name : {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"}) {
    c.run(probe);
    const Tensor gradient = probe.gradient(name);
    double error = 0, size = 0;
    for (size_t i = 0; i < static_cast<size_t>(kHidden); ++i) {
      constexpr float kStep = 2e-2f;
      const float held = c.store.at(name).values<float>()[i];
      const auto loss_at = [&](float value) {
        c.store.writable(name).values<float>()[i] = value;
        return c.run(probe);
      };
      const double difference = (loss_at(held + kStep) - loss_at(held - kStep)) / (2 * static_cast<double>(kStep));
      loss_at(held);
      const double exact = static_cast<double>(gradient.values<float>()[i]);
      error += (difference - exact) * (difference - exact);
      size += exact * exact;
    }
    worst = std::max(worst, std::sqrt(error / size));
  }
  return {{"error", worst}};
}

std::vector<Trial> trials(const LabSetup& setup) {
  std::vector<Trial> list;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const auto s = static_cast<uint64_t>(seed);
    list.push_back({fmt::format("identity/seed={}", seed), 0.05, [s](const Results&) { return identity_trial(s); }});
    list.push_back({fmt::format("gradient/seed={}", seed), 0.1, [s](const Results&) { return gradient_trial(s); }});
  }
  return list;
}

// Rounding of single precision apart: float inputs, differences of losses in float.
constexpr double kIdentityTolerance = 1e-5, kGradientTolerance = 1e-2, kVarianceTolerance = 1e-3;

Outcome conclude(const LabSetup& setup, const Results& results) {
  Figure identity{.name = "largest error of the input given back", .values = {}, .unit = "standard deviations"};
  Figure gradient{.name = "error of the gradients of gamma and beta", .values = {}, .unit = "relative"};
  Figure growth{.name = "error of variance = gamma squared", .values = {}, .unit = "relative"};
  report::Chart chart{.title = "Variance of the output by gamma",
                      .x_label = "gamma",
                      .y_label = "variance",
                      .log_x = true,
                      .log_y = true,
                      .note = "Dashed: gamma squared."};
  report::Series measured{.name = "measured"}, expected{.name = "gamma squared", .dashed = true};
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const Json& one = results.at(fmt::format("identity/seed={}", seed));
    identity.values.push_back(one["error"].get<double>());
    gradient.values.push_back(results.at(fmt::format("gradient/seed={}", seed))["error"].get<double>());
    double worst = 0;
    for (const Json& point : one["gammas"]) {
      const double gamma = point["gamma"].get<double>(), variance = point["variance"].get<double>();
      worst = std::max(worst, std::abs(variance / (gamma * gamma) - 1));
      if (seed > 1) continue;
      measured.x.push_back(gamma);
      measured.y.push_back(variance);
      expected.x.push_back(gamma);
      expected.y.push_back(gamma * gamma);
    }
    growth.values.push_back(worst);
  }
  chart.series = {measured, expected};
  const bool gives_back = identity.greatest() <= kIdentityTolerance, right = gradient.greatest() <= kGradientTolerance;
  const bool grows = growth.greatest() <= kVarianceTolerance;
  Outcome outcome;
  outcome.verdict = gives_back && right && grows   ? Verdict::kHolds
                    : gives_back || right || grows ? Verdict::kHoldsInPart
                                                   : Verdict::kDoesNotHold;
  outcome.answer = fmt::format(
      "With gamma = sqrt(var + eps) and beta = mean the input comes back to within {:.2g} of its standard deviation; "
      "the "
      "variance is gamma squared to within {:.2g}, so that a larger gamma makes it larger; the gradients of gamma and "
      "beta "
      "are the differences of the loss to within {:.2g}.",
      identity.greatest(), growth.greatest(), gradient.greatest());
  outcome.figures = {identity, growth, gradient};
  outcome.charts = {chart};
  return outcome;
}

}  // namespace

Experiment identity_experiment() {
  return {
      .name = "identity",
      .title = "What gamma and beta can do",
      .claim =
          "Batch norm takes nothing from what a network can express: gamma and beta can undo it. And, as is often "
          "noted the wrong way round, a larger gamma gives a larger variance of the output, not a smaller one.",
      .source = "Ioffe and Szegedy 2015, section 3",
      .protocol =
          "A network of two normalized layers on 256 random examples. For the first norm the input is given back "
          "by gamma = sqrt(var + eps), beta = mean in double precision; the variance of its output is measured "
          "for gammas from 0.25 to 4; the gradients of gamma and beta are compared with central differences of "
          "the loss, step 0.02.",
      .rule =
          "Holds where the input comes back to 1e-5 of its standard deviation, the variance is gamma squared to 0.1 "
          "% and the gradients agree to 1 %, over all seeds; in part where one of the three does.",
      .lesson =
          "A norm gives every channel mean 0 and variance 1. On its own that would limit the network: a sigmoid, for "
          "instance, would be kept in its linear middle. gamma and beta are two numbers for every channel, learned "
          "like weights, that choose the standard deviation and the mean which the next layer sees: the standard "
          "deviation of the output is gamma, the mean is beta. What matters is that they are learned directly, "
          "in place of following from all the weights of the layers in front.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
