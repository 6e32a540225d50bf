#include "evenkeel/lab/curves.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "evenkeel/core/error.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::lab {

ModelSpec usual_network(const LabSetup& setup) { return setup.network(setup.input().size() == 3 ? "cnn" : "mlp"); }

namespace {
// Layers that name a norm follow the network; those that are to have none stay without.
void follow_network(std::vector<LayerSpec>& layers) {
  for (LayerSpec& layer : layers) {
    if (layer.norm && *layer.norm != NormKind::kNone) layer.norm.reset();
    follow_network(layer.body);
  }
}
}  // namespace

ModelSpec normalized_by(ModelSpec spec, NormKind kind) {
  spec.norm = NormKind::kBatch;
  follow_network(spec.layers);
  if (kind != NormKind::kNone && norm_layers(spec).empty()) {
    throw UsageError(fmt::format(
        "network '{}' has no place for a norm, which this experiment compares with none; give another model",
        spec.name));
  }
  spec.norm = kind;
  return spec;
}

Json train_curve(const CurveSettings& settings, const data::Splits& splits) {
  Training run(settings.training, splits);
  const data::Dataset test = data::first_examples(splits.test, settings.test_examples);
  Evaluator evaluator(run.model().spec, run.model().store, {.threads = settings.training.threads});
  Json json{{"network", settings.training.spec.name},
            {"steps", Json::array()},
            {"seconds", Json::array()},
            {"accuracy", Json::array()}};
  std::vector<double> step_seconds;
  const auto measure = [&] {
    json["steps"].push_back(run.steps_done());
    json["accuracy"].push_back(evaluator.run(test, run.standardization()).accuracy);
    if (settings.look) settings.look(run);
  };
  measure();
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    if (!run.step()) break;
    step_seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    if (run.steps_done() % settings.every == 0) measure();
  }
  // By the median, what else the machine had to do in between counts little.
  const double of_one = step_seconds.empty() ? 0 : median_of(step_seconds);
  for (const Json& steps : json["steps"]) json["seconds"].push_back(steps.get<double>() * of_one);
  json["diverged"] = run.diverged();
  return json;
}

Json train_to_end(const TrainingSettings& settings, const data::Splits& splits,
                  const std::function<void(Training&, Json&)>& after) {
  Training run(settings, splits);
  while (run.step()) {
  }
  const double accuracy = run.diverged() ? 1 / static_cast<double>(splits.train.class_count()) : run.test().accuracy;
  Json json{{"accuracy", accuracy}, {"diverged", run.diverged()}};
  if (after) after(run, json);
  return json;
}

std::vector<double> numbers_of(const Json& array) { return array.get<std::vector<double>>(); }

report::Series median_line(const std::string& name, const std::vector<double>& x,
                           const std::vector<std::vector<double>>& lines) {
  EK_ASSERT(!lines.empty());
  size_t length = x.size();
  for (const auto& line : lines) length = std::min(length, line.size());
  report::Series series{.name = name};
  for (size_t i = 0; i < length; ++i) {
    Figure at{.name = name, .values = {}};
    for (const auto& line : lines) at.values.push_back(line[i]);
    series.x.push_back(x[i]);
    series.y.push_back(at.median());
    if (lines.size() == 1) continue;
    series.low.push_back(at.least());
    series.high.push_back(at.greatest());
  }
  return series;
}

}  // namespace evenkeel::lab
