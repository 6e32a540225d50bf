#include "evenkeel/train/probe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "evenkeel/core/parallel.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel {
namespace {

std::string input_name(const std::string& layer) { return "probe:" + layer; }
std::string input_gradient_name(const std::string& layer) { return "probe-gradient:" + layer; }

// Names the gradient of the loss by the value `input` that the backward node of a norm or an activation makes.
void name_gradient(Graph& graph, const std::string& layer, ValueId input) {
  for (const Node& node : graph.nodes) {
    const bool backward =
        std::holds_alternative<NormGradientInput>(node.op) || std::holds_alternative<ActivateGradient>(node.op);
    if (backward && node.inputs[0] == input) graph.named.emplace(input_gradient_name(layer), node.outputs[0]);
  }
}

// Names what comes into every norm and every activation of its own; those of the backward pass read the same values and are passed over.
std::vector<ProbedLayer> name_layers(Graph& graph, const std::vector<NormLayer>& norms) {
  std::vector<ProbedLayer> layers;
  for (const Node& node : graph.nodes) {
    const bool norm = std::holds_alternative<Normalize>(node.op);
    if (!norm && !std::holds_alternative<Activate>(node.op)) continue;
    const std::string name = input_name(node.name);
    if (!graph.named.emplace(name, node.inputs[0]).second) continue;
    name_gradient(graph, node.name, node.inputs[0]);
    const auto known =
        std::find_if(norms.begin(), norms.end(), [&](const NormLayer& layer) { return layer.name == node.name; });
    layers.push_back({node.name, norm && known != norms.end(), known != norms.end() ? known->eps : 0});
  }
  return layers;
}

}  // namespace

Probe::Probe(const ModelSpec& spec, ParameterStore& store, const ProbeSettings& settings) : settings_(settings) {
  Network network = build_network(spec, settings.mode);
  std::vector<std::string> by_batch;
  Graph graph = with_gradients(with_named_moments(std::move(network.graph), &by_batch));
  if (settings.layers) {
    layers_ = name_layers(graph, norm_layers(spec));
    for (ProbedLayer& layer : layers_)
      layer.is_norm = layer.is_norm && std::find(by_batch.begin(), by_batch.end(), layer.name) != by_batch.end();
  }
  for (const ParameterInfo& parameter : network.parameters) {
    if (graph.find("grad:" + parameter.name) != kNoValue) parameters_.push_back(parameter.name);
  }
  executable_ = cpu_backend(settings.threads > 0 ? settings.threads : available_cores())
                    ->compile(make_plan(std::move(graph), {.batch = settings.batch}), store);
}

double Probe::run(const float* x, const int32_t* labels, int64_t n) {
  executable_->run({.x = x, .labels = labels, .n = n, .seed = settings_.seed, .update_running = false});
  return executable_->scalar("loss");
}

double Probe::correct() const { return executable_->scalar("correct"); }

Tensor Probe::gradient(const std::string& parameter) const { return executable_->read("grad:" + parameter); }

double Probe::squared_gradient_norm() const {
  double sum = 0;
  for (const std::string& parameter : parameters_) sum += squared_norm(gradient(parameter));
  return sum;
}

Tensor Probe::input_of(const std::string& layer) const { return executable_->read(input_name(layer)); }

Tensor Probe::input_gradient_of(const std::string& layer) const {
  return executable_->read(input_gradient_name(layer));
}

std::vector<Moments> Probe::moments_of(const std::string& norm) const {
  return executable_->moments(moments_name(norm));
}

double squared_norm(const Tensor& tensor) {
  double sum = 0;
  for (const float value : tensor.values<float>()) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

namespace {

// f(i): value i of `count`.
template <class F>
Percentiles percentiles_by(int64_t count, F f) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  Percentiles p{kNone, kNone, kNone, kNone, kNone};
  if (count < 1) return p;
  double least = f(0), greatest = f(0);
  for (int64_t i = 0; i < count; ++i) {
    const double value = f(i);
    if (!std::isfinite(value)) return p;
    least = std::min(least, value);
    greatest = std::max(greatest, value);
  }
  const int64_t sampled = std::min(count, kMostSampled);
  std::vector<double> values(static_cast<size_t>(sampled));
  for (int64_t i = 0; i < sampled; ++i)
    values[static_cast<size_t>(i)] = f(
        sampled == count
            ? i
            : static_cast<int64_t>(static_cast<double>(i) * static_cast<double>(count) / static_cast<double>(sampled)));
  const auto at = [&](double share) {
    const auto place = values.begin() + std::lround(share * static_cast<double>(sampled - 1));
    std::nth_element(values.begin(), place, values.end());
    return *place;
  };
  return {least, at(0.15), at(0.50), at(0.85), greatest};
}

}  // namespace

Percentiles percentiles_of(const float* values, int64_t count) {
  return percentiles_by(count, [&](int64_t i) { return static_cast<double>(values[i]); });
}

Percentiles percentiles_of(const std::vector<double>& values) {
  return percentiles_by(static_cast<int64_t>(values.size()), [&](int64_t i) { return values[static_cast<size_t>(i)]; });
}

}  // namespace evenkeel
