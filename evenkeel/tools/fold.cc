#include "evenkeel/tools/fold.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <set>

#include "evenkeel/tools/fold_linear.h"
#include "evenkeel/tools/fold_patterns.h"

namespace evenkeel::tools {
namespace {

// What all graphs of a model share while they are folded.
struct Folding {
  onnx::Model& model;
  const FoldOptions& options;
  FreshNames names;
  FoldRecord record = {};
  std::set<std::string> unused = {};
};

// Why the norm is no affine map with known numbers; "" = it is.
std::string not_affine(const NormNode& norm, const Affine& affine) {
  if (norm.batch_statistics) return "it is in training mode: it normalizes by the statistics of the batch";
  if (!norm.spatial) return "spatial = 0: it has statistics for every pixel";
  if (!norm.computed.empty()) return fmt::format("{} is computed at run time", norm.computed);
  if (norm.channels() == 0) return "it has no channels";
  for (size_t c = 0; c < affine.scale.size(); ++c) {
    if (std::isfinite(affine.scale[c]) && std::isfinite(affine.shift[c])) continue;
    return fmt::format("channel {} is not finite: gamma {}, beta {}, mean {}, variance {}, eps {:.3g}", c,
                       norm.gamma[c], norm.beta[c], norm.mean[c], norm.var[c], norm.eps);
  }
  return "";
}

// One try at one norm; `reason` is assigned where it stays.
bool fold_norm(Folding& folding, FoldGraph& graph, size_t index, const std::string& path, std::string& reason) {
  const std::string label = path + norm_name(graph.node(index));
  const NormNode norm = graph.norm(index);
  const Affine affine = norm.computed.empty() ? affine_of(norm) : Affine{};
  reason = not_affine(norm, affine);
  if (reason.empty() && graph.node(index).outputs[0].empty()) reason = "it has no output";
  if (!reason.empty()) return false;
  FoldAttempt attempt = fold_behind(graph, index, affine);
  if (!attempt.done) {
    reason = "in front of it: " + attempt.reason;
    attempt = fold_in_front(graph, index, affine);
    if (!attempt.done) {
      reason += "; behind it: " + attempt.reason;
      return false;
    }
  }
  folding.record.folded.push_back({.norm = label,
                                   .pattern = attempt.pattern,
                                   .into = attempt.into,
                                   .outputs = path.empty() ? attempt.outputs : std::vector<std::string>(),
                                   .channels = norm.channels()});
  return true;
}

// Identity and Dropout that drops nothing, whose readers may as well read what they read.
std::vector<bool> nodes_that_pass_on(const onnx::Graph& graph, int64_t opset, const onnx::Constants* outer,
                                     const std::map<std::string, onnx::Uses, std::less<>>& uses) {
  const onnx::Constants constants(graph, outer);
  std::vector<bool> passing(graph.nodes.size(), false);
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const onnx::Node& node = graph.nodes[i];
    const bool dropout = node.op_type == "Dropout" && !drops(node, opset, constants);
    if (!node.domain.empty() || (!dropout && node.op_type != "Identity")) continue;
    if (node.inputs.empty() || node.outputs.empty() || node.outputs[0].empty()) continue;
    const auto is_read = [&](const std::string& output) {
      const auto use = uses.find(output);
      return use != uses.end() && (use->second.graph_output || !use->second.consumers.empty());
    };
    if (std::any_of(node.outputs.begin() + 1, node.outputs.end(), is_read)) continue;  // the mask
    const onnx::Uses& use = uses.at(node.outputs[0]);
    const auto from = uses.find(node.inputs[0]);
    if (use.graph_output || from == uses.end() || from->second.producer < 0) continue;
    passing[i] = std::all_of(use.consumers.begin(), use.consumers.end(), [&](size_t reader) {
      const std::vector<std::string>& inputs = graph.nodes[reader].inputs;  // of others a body reads it
      return std::find(inputs.begin(), inputs.end(), node.outputs[0]) != inputs.end() &&
             std::none_of(graph.nodes[reader].attributes.begin(), graph.nodes[reader].attributes.end(),
                          [](const onnx::Attribute& attribute) { return attribute.graph != nullptr; });
    });
  }
  return passing;
}

// Those of them that stand between a norm and what may take it in go, so that the two are neighbours.
void bypass_beside_norms(Folding& folding, onnx::Graph& graph, const onnx::Constants* outer) {
  const auto uses = onnx::uses_of(graph);
  const std::vector<bool> passing = nodes_that_pass_on(graph, folding.model.opset(), outer, uses);
  if (std::find(passing.begin(), passing.end(), true) == passing.end()) return;
  const std::vector<size_t> order = onnx::sorted(graph);
  const auto takes_in = [&](const onnx::Node& node) {
    return is_product(node) || is_batch_norm(node) || (node.domain.empty() && node.op_type == "Add");
  };
  // What stands at the ends of a row of nodes that pass on.
  std::vector<bool> to_norm(graph.nodes.size(), false), to_taker = to_norm, goes = to_norm;
  std::vector<size_t> from(graph.nodes.size());
  for (size_t k = order.size(); k-- > 0;) {
    if (!passing[order[k]]) continue;
    for (const size_t reader : uses.at(graph.nodes[order[k]].outputs[0]).consumers) {
      const onnx::Node& node = graph.nodes[reader];
      if (is_batch_norm(node) || (passing[reader] && to_norm[reader])) to_norm[order[k]] = true;
      if (takes_in(node) || (passing[reader] && to_taker[reader])) to_taker[order[k]] = true;
    }
  }
  std::map<std::string, std::string> instead;
  for (const size_t i : order) {
    if (!passing[i]) continue;
    const onnx::Node& node = graph.nodes[i];
    const auto producer = static_cast<size_t>(uses.at(node.inputs[0]).producer);
    from[i] = passing[producer] ? from[producer] : producer;
    const onnx::Node& maker = graph.nodes[from[i]];
    goes[i] = (is_batch_norm(maker) && to_taker[i]) || (takes_in(maker) && to_norm[i]);
    if (!goes[i]) continue;
    const auto before = instead.find(node.inputs[0]);
    instead[node.outputs[0]] = before == instead.end() ? node.inputs[0] : before->second;
    folding.unused.insert(node.inputs.begin() + 1, node.inputs.end());
  }
  for (onnx::Node& node : graph.nodes) {
    for (std::string& input : node.inputs) {
      if (const auto found = instead.find(input); found != instead.end()) input = found->second;
    }
  }
  size_t index = 0;
  std::erase_if(graph.nodes, [&](const onnx::Node&) { return goes[index++]; });
  std::erase_if(graph.value_infos, [&](const onnx::ValueInfo& info) { return instead.contains(info.name); });
}

void fold_graph(Folding& folding, onnx::Graph& graph, const onnx::Constants* outer, const std::string& path) {
  const int64_t opset = folding.model.opset();
  if (folding.options.force_inference) {
    EndedTraining ended = end_training(graph, opset, norms_in_training(graph, opset), outer != nullptr);
    std::move(ended.outputs.begin(), ended.outputs.end(), std::back_inserter(folding.record.removed));
  }
  bypass_beside_norms(folding, graph, outer);
  const onnx::Constants constants(graph, outer);
  for (onnx::Node& node : graph.nodes) {
    for (onnx::Attribute& attribute : node.attributes) {
      if (!attribute.graph) continue;
      attribute.graph = std::make_shared<onnx::Graph>(*attribute.graph);  // copies of the model share it
      node.attributes_changed = true;
      fold_graph(folding, *attribute.graph, &constants, path + short_name(node) + "/" + attribute.name + "/");
    }
  }

  FoldGraph work(folding.model, graph, constants, folding.names, outer != nullptr);
  std::map<size_t, std::string> reasons;  // of the norms that stay, by node
  for (bool again = true; again;) {       // a norm that went may make room for another
    again = false;
    reasons.clear();
    for (size_t i = 0; i < work.size(); ++i) {
      if (work.removed(i) || !is_batch_norm(work.node(i))) continue;
      if (fold_norm(folding, work, i, path, reasons[i])) {
        reasons.erase(i);
        again = true;
      }
    }
  }
  for (const auto& [index, reason] : reasons)
    folding.record.left.push_back({path + norm_name(work.node(index)), reason});
  work.finish(folding.unused);
}

void erase_unused(onnx::Graph& graph, std::span<const std::string> names) {
  for (onnx::Node& node : graph.nodes) {
    for (onnx::Attribute& attribute : node.attributes) {
      if (attribute.graph) erase_unused(*attribute.graph, names);
    }
  }
  graph.erase_unused_initializers(names);
}

}  // namespace

FoldRecord fold(onnx::Model& model, const FoldOptions& options) {
  Folding folding{.model = model, .options = options, .names = FreshNames(model.graph)};
  if (options.force_inference) folding.record.dropout = end_dropout(model);
  fold_graph(folding, model.graph, nullptr, "");
  const std::vector<std::string> names(folding.unused.begin(), folding.unused.end());
  if (!names.empty()) erase_unused(model.graph, names);
  return std::move(folding.record);
}

nlohmann::ordered_json json_of(const FoldRecord& record) {
  nlohmann::ordered_json json{{"folded", nlohmann::ordered_json::array()}, {"left", nlohmann::ordered_json::array()}};
  for (const FoldedNorm& norm : record.folded) {
    json["folded"].push_back(
        {{"norm", norm.norm}, {"pattern", norm.pattern}, {"into", norm.into}, {"channels", norm.channels}});
  }
  for (const LeftNorm& norm : record.left) json["left"].push_back({{"norm", norm.norm}, {"reason", norm.reason}});
  json["removed_outputs"] = json_of(record.removed);
  json["dropout_ended"] = record.dropout;
  return json;
}

}  // namespace evenkeel::tools
