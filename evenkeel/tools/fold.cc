#include "evenkeel/tools/fold.h"

#include <fmt/format.h>

#include <cmath>
#include <set>

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

// As after training: stored statistics, one output.
void force_inference(onnx::Node& node, int64_t opset, const std::map<std::string, onnx::Uses, std::less<>>& uses) {
  for (size_t i = 1; i < node.outputs.size(); ++i) {
    const auto use = uses.find(node.outputs[i]);
    if (!node.outputs[i].empty() && use != uses.end() && (use->second.graph_output || !use->second.consumers.empty()))
      return;  // its batch statistics are wanted: it stays in training mode, and is left for that reason
  }
  node.outputs.resize(1);
  if (opset >= 14) node.set("training_mode", int64_t{0});
  if (opset < 7) node.set("is_test", int64_t{1});
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

void fold_graph(Folding& folding, onnx::Graph& graph, const onnx::Constants* outer, const std::string& path) {
  const int64_t opset = folding.model.opset();
  if (folding.options.force_inference) {
    const auto uses = onnx::uses_of(graph);
    for (onnx::Node& node : graph.nodes) {
      if (is_batch_norm(node) && uses_batch_statistics(node, opset)) force_inference(node, opset, uses);
    }
  }
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
  return json;
}

}  // namespace evenkeel::tools
