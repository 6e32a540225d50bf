// Experiment: what gamma and beta can do. They can give the input back, and a larger gamma makes the variance larger.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/core/rng.h"
#include "evenkeel/lab/experiment.h"
#include "evenkeel/lab/values.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/probe.h"

namespace evenkeel::lab {
namespace {

constexpr int64_t kExamples = 256, kFeatures = 8, kHidden = 6, kClasses = 3;
constexpr double kEps = 1e-5;

// Two layers of linear -> norm -> tanh, a linear one, and the values that go in.
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
  Probe probe() { return {spec, store, {.batch = kExamples, .threads = 1, .outputs = true}}; }
  double run(Probe& probe) { return probe.run(x.data(), labels.data(), kExamples); }
};

// Moments of a channel of [examples, channels].
Moments moments_of(const Tensor& values, int64_t channel) {
  Moments all;
  for (int64_t i = 0; i < kExamples; ++i) {
    const float value = values.values<float>()[static_cast<size_t>(i * kHidden + channel)];
    all = merge(all, {.count = 1, .mean = static_cast<double>(value)});
  }
  return all;
}

void fill(ParameterStore& store, const std::string& name, float value) {
  const auto values = store.writable(name).values<float>();
  std::fill(values.begin(), values.end(), value);
}

// What the network's first norm gives, with gamma and beta set in its parameters.
Json identity_trial(uint64_t seed) {
  Case c(seed);
  Probe probe = c.probe();
  c.run(probe);
  const Tensor input = probe.input_of("bn1");
  std::vector<Moments> moments;
  for (int64_t channel = 0; channel < kHidden; ++channel) {
    moments.push_back(moments_of(input, channel));
    const auto at = static_cast<size_t>(channel);
    c.store.writable("bn1.weight").values<float>()[at] =
        static_cast<float>(std::sqrt(moments.back().var_population() + kEps));
    c.store.writable("bn1.bias").values<float>()[at] = static_cast<float>(moments.back().mean);
  }
  c.run(probe);
  const Tensor output = probe.output_of("bn1");
  double worst = 0;
  for (size_t i = 0; i < static_cast<size_t>(kExamples * kHidden); ++i) {
    const double sd = std::sqrt(moments[i % static_cast<size_t>(kHidden)].var_population());
    const float error = output.values<float>()[i] - input.values<float>()[i];
    worst = std::max(worst, std::abs(static_cast<double>(error)) / sd);
  }
  Json json{{"error", number(worst)}, {"gammas", Json::array()}};
  fill(c.store, "bn1.bias", 0);
  for (const double gamma : {0.25, 0.5, 1.0, 2.0, 4.0}) {
    fill(c.store, "bn1.weight", static_cast<float>(gamma));
    c.run(probe);
    json["gammas"].push_back(
        {{"gamma", gamma}, {"variance", number(moments_of(probe.output_of("bn1"), 0).var_population())}});
  }
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
    identity.values.push_back(number_of(one.at("error")));
    gradient.values.push_back(results.at(fmt::format("gradient/seed={}", seed))["error"].get<double>());
    double worst = 0;
    for (const Json& point : one["gammas"]) {
      const double gamma = point["gamma"].get<double>(), variance = number_of(point.at("variance"));
      const double error = std::abs(variance / (gamma * gamma) - 1);
      worst = error <= worst ? worst : error;  // not a number stays
      if (seed > 1) continue;
      measured.x.push_back(gamma);
      measured.y.push_back(variance);
      expected.x.push_back(gamma);
      expected.y.push_back(gamma * gamma);
    }
    growth.values.push_back(worst);
  }
  chart.series = {measured, expected};
  const bool gives_back = at_most(identity.greatest(), kIdentityTolerance),
             right = at_most(gradient.greatest(), kGradientTolerance);
  const bool grows = at_most(growth.greatest(), kVarianceTolerance);
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
          "A network of two normalized layers on 256 random examples, in single precision. In its first norm gamma is "
          "set to sqrt(var + eps) and beta to the mean of each channel, and what comes out is compared with what went "
          "in; the variance of what comes out is measured for gammas from 0.25 to 4; the gradients of gamma and beta "
          "are compared with central differences of the loss, step 0.02.",
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
