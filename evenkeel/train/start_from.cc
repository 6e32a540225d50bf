#include "evenkeel/train/start_from.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "evenkeel/train/statistics.h"

namespace evenkeel {
namespace {

// Parameters of the layer that makes the logits.
std::set<std::string> head_of(const Graph& graph) {
  ValueId id = graph.find("logits");
  for (auto node = graph.nodes.rbegin(); node != graph.nodes.rend(); ++node) {
    if (node->outputs.empty() || node->outputs[0] != id) continue;
    std::set<std::string> names;
    for (const ValueId input : node->inputs) {
      if (input != kNoValue && graph.value(input).role == Role::kParameter) names.insert(graph.value(input).name);
    }
    if (!names.empty()) return names;
    id = node->inputs[0];
  }
  return {};
}

void take_statistics(const Model& from, const Graph& graph, ParameterStore& store) {
  for (const ChannelStatistics& held : running_statistics_of(from.spec, from.store)) {
    const std::string mean = held.name + ".running_mean", var = held.name + ".running_var";
    if (!store.contains(mean) || store.at(mean).count() != static_cast<int64_t>(held.mean.size())) continue;
    const auto assign = [](const std::vector<double>& values, Tensor& tensor) {
      std::transform(values.begin(), values.end(), tensor.values<float>().begin(),
                     [](double value) { return static_cast<float>(value); });
    };
    assign(held.mean, store.writable(mean));
    assign(held.var, store.writable(var));
  }
  for (const Node& node : graph.nodes) {
    const auto* update = std::get_if<UpdateRunning>(&node.op);
    if (update != nullptr && update->cumulative)
      store.writable(graph.value(node.inputs[3]).name).values<int64_t>()[0] = 0;
  }
}

}  // namespace

std::string take_values(const Model& from, const std::string& path, const Network& network, Model& model) {
  std::vector<std::string> left;
  const auto fits = [&](const std::string& name) {
    return from.store.contains(name) && from.store.at(name).shape() == model.store.at(name).shape();
  };
  const auto take = [&](const std::string& name) {
    // The count of the batches belongs to the statistics that they made.
    constexpr std::string_view kCounter = ".num_batches_tracked";
    const bool counts = name.ends_with(kCounter);
    const std::string mean = name.substr(0, name.size() - (counts ? kCounter.size() : 0)) + ".running_mean";
    if (fits(name) && (!counts || fits(mean))) {
      model.store.writable(name) = from.store.at(name).clone();
    } else {
      left.push_back(name);
    }
  };
  // The outputs of a network mean its classes, in their order.
  const bool same_classes = from.class_names == model.class_names;
  const std::set<std::string> head = same_classes ? std::set<std::string>() : head_of(network.graph);
  for (const ParameterInfo& info : network.parameters) {
    if (head.count(info.name) > 0) {
      left.push_back(info.name);
    } else {
      take(info.name);
    }
  }
  for (const BufferInfo& info : network.buffers) take(info.name);
  take_statistics(from, network.graph, model.store);
  const size_t all = network.parameters.size() + network.buffers.size();
  if (left.size() == all) {
    throw UsageError(
        fmt::format("--from '{}': none of its tensors has the name and the shape of one of this network's; is --model "
                    "the same network?",
                    path));
  }
  if (left.empty()) return "";
  return fmt::format(
      "{} of {} tensors start anew, since '{}' has them for other classes, in another shape, or not at all: {}",
      left.size(), all, path, fmt::join(left, ", "));
}

}  // namespace evenkeel
