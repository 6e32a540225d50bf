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
std::string output_name(const std::string& layer) { return "probe-output:" + layer; }
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
std::vector<ProbedLayer> name_layers(Graph& graph, const std::vector<std::string>& with_moments) {
  std::vector<ProbedLayer> layers;
  for (const Node& node : graph.nodes) {
    const bool norm = std::holds_alternative<Normalize>(node.op);
    if (!norm && !std::holds_alternative<Activate>(node.op)) continue;
    const std::string name = input_name(node.name);
    if (!graph.named.emplace(name, node.inputs[0]).second) continue;
    name_gradient(graph, node.name, node.inputs[0]);
    const bool moments = std::find(with_moments.begin(), with_moments.end(), node.name) != with_moments.end();
    layers.push_back({node.name, norm, norm && moments});
  }
  return layers;
}

// Beside every norm of `layers` its twin without residual and activation: the same scale, whatever that is made of, the same kernel.
void add_outputs(Graph& graph, const std::vector<ProbedLayer>& layers) {
  std::vector<Node> nodes;
  for (Node& node : graph.nodes) {
    const auto* norm = std::get_if<Normalize>(&node.op);
    const bool wanted = norm != nullptr && graph.find(output_name(node.name)) == kNoValue &&
                        std::any_of(layers.begin(), layers.end(), [&](const auto& l) { return l.name == node.name; });
    nodes.push_back(std::move(node));
    if (!wanted) continue;
    const Node& own = nodes.back();
    const Value& x = graph.value(own.inputs[0]);
    Node twin{output_name(own.name), Normalize{{}, std::get<Normalize>(own.op).groups}, own.inputs, {}};
    twin.inputs.resize(5, kNoValue);
    twin.inputs[4] = kNoValue;
    twin.outputs = {graph.add_value({twin.name, Role::kComputed, x.element, true, x.shape})};
    graph.named[twin.name] = twin.outputs[0];
    nodes.push_back(std::move(twin));
  }
  graph.nodes = std::move(nodes);
}

}  // namespace

Probe::Probe(const ModelSpec& spec, ParameterStore& store, const ProbeSettings& settings) : settings_(settings) {
  Network network = build_network(spec, settings.mode);
  std::vector<std::string> with_moments;
  Graph graph = with_gradients(with_named_moments(std::move(network.graph), &with_moments));
  if (settings.layers) layers_ = name_layers(graph, with_moments);
  if (settings.outputs) add_outputs(graph, layers_);
  for (const ParameterInfo& parameter : network.parameters) {
    if (graph.find("grad:" + parameter.name) != kNoValue) parameters_.push_back(parameter.name);
  }
  executable_ = cpu_backend(settings.threads > 0 ? settings.threads : available_cores())
                    ->compile(make_plan(std::move(graph), {.batch = settings.batch}), store);
}

double Probe::run(const float* x, const int32_t* labels, int64_t n, int64_t step) {
  executable_->run({.x = x, .labels = labels, .n = n, .step = step, .seed = settings_.seed, .update_running = false});
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

Tensor Probe::output_of(const std::string& norm) const { return executable_->read(output_name(norm)); }

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
