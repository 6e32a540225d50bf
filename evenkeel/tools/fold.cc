#include "evenkeel/tools/fold.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>
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
    EndedTraining ended = end_training(graph, opset, norms_in_training(graph, opset), outer != nullptr);
    std::move(ended.outputs.begin(), ended.outputs.end(), std::back_inserter(folding.record.removed));
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
