#include "evenkeel/lab/forward.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/graph/prune.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::lab {
namespace {

std::string input_name(const std::string& watched) { return "input:" + watched; }

}  // namespace

Forward::Forward(const ModelSpec& spec, ParameterStore& store, const ForwardSettings& settings) {
  std::vector<std::string> norms;
  Graph graph =
      with_named_moments(build_network(spec, Mode::kInferenceBatchStatistics, {.with_loss = false}).graph, &norms);
  const ValueId x = graph.find("x");
  std::set<std::string> wanted;
  for (const Node& node : graph.nodes) {
    const bool layer = std::holds_alternative<Gemm>(node.op) || std::holds_alternative<Conv>(node.op);
    const bool norm =
        std::holds_alternative<Normalize>(node.op) && std::find(norms.begin(), norms.end(), node.name) != norms.end();
    if (settings.watch == Watch::kLayers ? !layer : !norm) continue;
    if (!settings.only.empty() && node.name != settings.only) continue;
    // A flattened picture is still the picture.
    ValueId input = node.inputs[0];
    for (const Node& below : graph.nodes) {
      if (std::holds_alternative<Flatten>(below.op) && below.outputs[0] == input && below.inputs[0] == x) input = x;
    }
    if (input == x) continue;
    watched_.push_back(node.name);
    graph.named[input_name(node.name)] = node.inputs[0];
    wanted.insert(input_name(node.name));
    if (norm) wanted.insert(moments_name(node.name));
  }
  if (watched_.empty()) {
    throw UsageError(fmt::format("network '{}' has no {} to look at", spec.name,
                                 settings.watch == Watch::kNorms ? "batch norm" : "layer above its first"));
  }
  executable_ = cpu_backend(settings.threads)
                    ->compile(make_plan(prune(std::move(graph), wanted), {.batch = settings.batch}), store);
}

void Forward::run(const float* x, int64_t n) { executable_->run({.x = x, .n = n}); }

Tensor Forward::input_of(const std::string& name) const { return executable_->read(input_name(name)); }

std::vector<Moments> Forward::moments_of(const std::string& norm) const {
  return executable_->moments(moments_name(norm));
}

std::vector<ChannelSpread> spread_of(const Tensor& input) {
  const Shape& shape = input.shape();
  const int64_t n = shape[0], channels = shape[1], s = input.count() / (n * channels);
  const auto values = input.values<float>();
  std::vector<ChannelSpread> spread(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) {
    const auto sum = [&](auto&& f) {
      double total = 0;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < s; ++j)
          total += f(static_cast<double>(values[static_cast<size_t>((i * channels + c) * s + j)]));
      }
      return total / static_cast<double>(n * s);
    };
    const double mean = sum([](double value) { return value; });
    spread[static_cast<size_t>(c)] = {mean,
                                      std::sqrt(sum([&](double value) { return (value - mean) * (value - mean); }))};
  }
  return spread;
}

double shift_between(const std::vector<ChannelSpread>& from, const std::vector<ChannelSpread>& to) {
  EK_ASSERT(from.size() == to.size());
  double moved = 0, variance = 0;
  for (size_t c = 0; c < from.size(); ++c) {
    const double mean = to[c].mean - from[c].mean, sd = to[c].sd - from[c].sd;
    moved += mean * mean + sd * sd;
    variance += from[c].sd * from[c].sd;
  }
  return variance > 0 ? std::sqrt(moved / variance) : 0;
}

std::vector<float> first_inputs(const data::Dataset& data, const data::Standardization& standardization, int64_t n) {
  const data::BatchReader reader(data, standardization);
  std::vector<int64_t> indices(static_cast<size_t>(std::min(n, data.count)));
  std::iota(indices.begin(), indices.end(), int64_t{0});
  std::vector<float> x(indices.size() * static_cast<size_t>(reader.example_size()));
  reader.read(indices, 0, 1, x.data(), nullptr);
  return x;
}

bool take_population_statistics(Model& model, const data::Dataset& train, int64_t examples, int threads) {
  if (norm_layers(model.spec).empty()) return true;
  try {
    recompute_statistics(model, train,
                         {.kind = RunningStatistics::kPopulation,
                          .examples = std::min(examples, train.count),
                          .batch_size = 250,
                          .threads = threads});
  } catch (const Error& e) {
    if (e.exit_code() != kExitNotFinite) throw;
    return false;
  }
  return true;
}

void require_norms(const ModelSpec& spec, const std::string& experiment) {
  for (const NormLayer& norm : norm_layers(spec)) {
    if (norm.affine) return;
  }
  throw UsageError(fmt::format(
      "network '{}' has no batch norm with gamma and beta, which experiment '{}' is about; give another model",
      spec.name, experiment));
}

}  // namespace evenkeel::lab
