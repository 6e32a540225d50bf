#include "evenkeel/tools/inference_mode.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/tools/norm_node.h"

namespace evenkeel::tools {
namespace {

std::vector<std::string> further_outputs(const onnx::Node& norm) {
  std::vector<std::string> names;
  for (size_t i = 1; i < norm.outputs.size(); ++i) {
    if (!norm.outputs[i].empty()) names.push_back(norm.outputs[i]);
  }
  return names;
}

void set_inference(onnx::Node& norm, int64_t opset) {
  norm.outputs.resize(1);
  if (opset >= 14) norm.set("training_mode", int64_t{0});
  if (opset < 7) norm.set("is_test", int64_t{1});
}

void end_dropout(onnx::Graph& graph, int64_t opset, const onnx::Constants* outer, std::vector<std::string>& names,
                 std::vector<std::string>& modes) {
  const onnx::Constants constants(graph, outer);
  for (onnx::Node& node : graph.nodes) {
    for (onnx::Attribute& attribute : node.attributes) {
      if (!attribute.graph) continue;
      attribute.graph = std::make_shared<onnx::Graph>(*attribute.graph);  // copies of the model share it
      node.attributes_changed = true;
      end_dropout(*attribute.graph, opset, &constants, names, modes);
    }
    if (!drops(node, opset, constants)) continue;
    names.push_back(short_name(node));
    if (opset < 7) {
      node.set("is_test", int64_t{1});
    } else {
      modes.push_back(node.inputs[2]);
      node.inputs.resize(node.inputs[1].empty() ? 1 : 2);
    }
  }
}

}  // namespace

// opset 12 and later: an input says it, absent means no. Up to 6: is_test; between them there is no training mode.
bool drops(const onnx::Node& node, int64_t opset, const onnx::Constants& constants) {
  if (!node.domain.empty() || node.op_type != "Dropout") return false;
  if (opset < 7) return node.integer("is_test", 0) == 0;
  if (opset < 12 || node.inputs.size() < 3 || node.inputs[2].empty()) return false;
  const onnx::TensorValue* mode = constants.find(node.inputs[2]);
  const auto is_zero = [](std::byte b) { return b == std::byte{0}; };
  return mode == nullptr || !std::all_of(mode->data.view().begin(), mode->data.view().end(), is_zero);
}

std::vector<size_t> norms_in_training(const onnx::Graph& graph, int64_t opset) {
  std::vector<size_t> norms;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    if (is_batch_norm(graph.nodes[i]) && !graph.nodes[i].outputs.empty() &&
        uses_batch_statistics(graph.nodes[i], opset))
      norms.push_back(i);
  }
  return norms;
}

EndedTraining end_training(onnx::Graph& graph, int64_t opset, const std::vector<size_t>& norms, bool is_body) {
  EndedTraining ended;
  const auto uses = onnx::uses_of(graph);
  for (const size_t index : norms) {
    onnx::Node& norm = graph.nodes[index];
    std::vector<std::string> wanted;
    bool read = false;
    for (const std::string& output : further_outputs(norm)) {
      const auto use = uses.find(output);
      if (use == uses.end()) continue;
      read = read || !use->second.consumers.empty();
      if (use->second.graph_output) wanted.push_back(output);
    }
    const auto is_wanted = [&](const onnx::ValueInfo& info) {
      return std::find(wanted.begin(), wanted.end(), info.name) != wanted.end();
    };
    const bool nothing_else = std::all_of(graph.outputs.begin(), graph.outputs.end(), is_wanted);
    if (read || (!wanted.empty() && (is_body || nothing_else))) {
      ended.left.push_back(norm_name(norm));
      continue;
    }
    for (const std::string& output : wanted) ended.outputs.push_back({output, norm_name(norm)});
    std::erase_if(graph.outputs, is_wanted);
    const std::vector<std::string> gone = further_outputs(norm);
    std::erase_if(graph.value_infos, [&](const onnx::ValueInfo& info) {
      return std::find(gone.begin(), gone.end(), info.name) != gone.end();
    });
    set_inference(norm, opset);
    ended.norms.push_back(norm_name(norm));
  }
  return ended;
}

std::vector<std::string> end_dropout(onnx::Model& model) {
  std::vector<std::string> names, modes;
  end_dropout(model.graph, model.opset(), nullptr, names, modes);
  if (!modes.empty()) model.graph.erase_unused_initializers(modes);
  return names;
}

std::string in_words(const RemovedOutput& removed) {
  return fmt::format("output '{}' (running statistics of {}) removed", removed.output, removed.norm);
}

nlohmann::ordered_json json_of(const std::vector<RemovedOutput>& removed) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const RemovedOutput& output : removed) list.push_back({{"output", output.output}, {"norm", output.norm}});
  return list;
}

}  // namespace evenkeel::tools
