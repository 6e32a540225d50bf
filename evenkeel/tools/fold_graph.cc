#include "evenkeel/tools/fold_graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "evenkeel/core/error.h"

namespace evenkeel::tools {
namespace {

bool is_floating(onnx::ElementType type) {
  using onnx::ElementType;
  return type == ElementType::kFloat || type == ElementType::kDouble || type == ElementType::kFloat16 ||
         type == ElementType::kBfloat16;
}

// Nodes whose output has the extents of their first input.
bool keeps_shape(const std::string& op_type) {
  constexpr std::array kNames = {"BatchNormalization",
                                 "Relu",
                                 "LeakyRelu",
                                 "PRelu",
                                 "Clip",
                                 "Sigmoid",
                                 "HardSigmoid",
                                 "Tanh",
                                 "Elu",
                                 "Gelu",
                                 "Erf",
                                 "Softplus",
                                 "HardSwish",
                                 "Dropout",
                                 "Identity",
                                 "Cast",
                                 "Exp",
                                 "Sqrt",
                                 "Softmax",
                                 "Neg",
                                 "Selu",
                                 "LogSoftmax"};
  return std::find(kNames.begin(), kNames.end(), op_type) != kNames.end();
}

}  // namespace

std::string FreshNames::make(const std::string& wish) {
  std::string name = wish;
  for (int64_t i = 2; !taken_.insert(name).second; ++i) name = fmt::format("{}_{}", wish, i);
  return name;
}

void FreshNames::take(const onnx::Graph& graph) {
  for (const onnx::TensorValue& tensor : graph.initializers) taken_.insert(tensor.name);
  for (const auto* list : {&graph.inputs, &graph.outputs, &graph.value_infos}) {
    for (const onnx::ValueInfo& info : *list) taken_.insert(info.name);
  }
  for (const onnx::Node& node : graph.nodes) {
    taken_.insert(node.inputs.begin(), node.inputs.end());
    taken_.insert(node.outputs.begin(), node.outputs.end());
    for (const onnx::Attribute& attribute : node.attributes) {
      if (attribute.graph) take(*attribute.graph);
    }
  }
}

FoldGraph::FoldGraph(onnx::Model& model, onnx::Graph& graph, const onnx::Constants& constants, FreshNames& names,
                     bool is_body)
    : model_(model),
      graph_(graph),
      constants_(constants),
      names_(names),
      opset_(model.opset()),
      is_body_(is_body),
      uses_(onnx::uses_of(graph)),
      removed_(graph.nodes.size(), false) {
  for (const onnx::TensorValue& tensor : graph.initializers) initializers_.insert(tensor.name);
  for (const auto* list : {&graph.inputs, &graph.outputs, &graph.value_infos}) {
    for (const onnx::ValueInfo& info : *list) {
      if (info.dims) declared_ranks_[info.name] = info.dims->size();
    }
  }
}

const onnx::Uses& FoldGraph::uses(const std::string& value) const {
  static const onnx::Uses kNone;
  const auto found = uses_.find(value);
  return found == uses_.end() ? kNone : found->second;
}

int64_t FoldGraph::only_consumer(const std::string& value) const {
  const onnx::Uses& use = uses(value);
  return use.consumers.size() == 1 && !use.graph_output ? static_cast<int64_t>(use.consumers[0]) : -1;
}

std::optional<Weights> FoldGraph::constant(const std::string& value) const {
  if (const auto changed = changed_.find(value); changed != changed_.end()) return changed->second;
  if (scaled_.contains(value)) return std::nullopt;  // the weights of one product, and nobody else's
  const onnx::TensorValue* tensor = constants_.find(value);
  if (tensor == nullptr || !is_floating(tensor->type)) return std::nullopt;
  return Weights{tensor->type, tensor->dims, onnx::doubles_of(*tensor)};
}

std::optional<ScaledWeights> FoldGraph::weights(const std::string& value, const LinearForm& form,
                                                std::string& refusal) const {
  if (const auto scaled = scaled_.find(value); scaled != scaled_.end()) return scaled->second;
  const onnx::TensorValue* tensor = changed_.contains(value) ? nullptr : constants_.find(value);
  if (tensor == nullptr || !is_floating(tensor->type)) return std::nullopt;
  refusal = form.refusal(tensor->dims);
  if (!refusal.empty()) return std::nullopt;
  return ScaledWeights(*tensor, form);
}

NormNode FoldGraph::norm(size_t index) const {
  NormNode norm = read_norm(node(index), opset_, constants_);
  std::vector<double>* const values[] = {&norm.gamma, &norm.beta, &norm.mean, &norm.var};
  bool any = false;
  for (size_t i = 0; i < 4; ++i) {
    const auto changed = changed_.find(node(index).inputs[kNormGamma + i]);
    if (changed == changed_.end()) continue;
    *values[i] = changed->second.values;
    any = true;
  }
  // Folds change gamma and beta only of norms whose parameters were all constants; new ones have no tensor yet.
  if (any) norm.computed.clear();
  return norm;
}

size_t FoldGraph::rank_of(const std::string& value, int depth) const {
  if (const auto declared = declared_ranks_.find(value); declared != declared_ranks_.end()) return declared->second;
  if (const onnx::TensorValue* tensor = constants_.find(value)) return tensor->dims.size();
  const onnx::Uses& use = uses(value);
  if (use.producer < 0 || depth == 0) return 0;
  const onnx::Node& maker = node(static_cast<size_t>(use.producer));
  if (!maker.domain.empty() || maker.inputs.empty()) return 0;
  if (maker.op_type == "Flatten" || maker.op_type == "Gemm") return 2;
  if (keeps_shape(maker.op_type)) return rank_of(maker.inputs[0], depth - 1);
  if (maker.op_type == "Reshape" && maker.inputs.size() > 1) {
    const onnx::TensorValue* shape = constants_.find(maker.inputs[1]);
    return shape != nullptr && shape->dims.size() == 1 ? static_cast<size_t>(shape->dims[0]) : 0;
  }
  if ((maker.op_type == "Add" || maker.op_type == "Mul" || maker.op_type == "Sub" || maker.op_type == "Div") &&
      maker.inputs.size() == 2) {
    const size_t a = rank_of(maker.inputs[0], depth / 2), b = rank_of(maker.inputs[1], depth / 2);
    return a == 0 || b == 0 ? 0 : std::max(a, b);
  }
  if (maker.op_type == "MatMul" && maker.inputs.size() == 2) {
    return rank_of(maker.inputs[1], depth / 2) == 2 ? rank_of(maker.inputs[0], depth / 2) : 0;
  }
  return 0;
}

void FoldGraph::release(const std::string& value, size_t consumer) {
  const auto found = uses_.find(value);
  if (value.empty() || found == uses_.end()) return;
  auto& consumers = found->second.consumers;
  if (const auto use = std::find(consumers.begin(), consumers.end(), consumer); use != consumers.end())
    consumers.erase(use);
  if (!consumers.empty() || found->second.graph_output) return;
  const int64_t producer = found->second.producer;
  if (producer < 0) {
    unused_.insert(value);
    return;
  }
  // What made a constant goes with its last reader; other nodes stay, though nobody reads them.
  const auto index = static_cast<size_t>(producer);
  const onnx::Node& maker = node(index);
  if (removed_[index] || !maker.domain.empty() || maker.outputs.size() != 1) return;
  if (maker.op_type != "Constant" && maker.op_type != "Identity") return;
  removed_[index] = true;
  gone_.insert(value);
  release_inputs(index);
}

void FoldGraph::release_inputs(size_t index) {
  for (const std::string& input : node(index).inputs) release(input, index);
}

std::string FoldGraph::name_to_assign(size_t index, size_t input) {
  onnx::Node& target = node(index);
  if (target.inputs.size() <= input) target.inputs.resize(input + 1);
  std::string old = target.inputs[input];
  const bool own = initializers_.contains(old) || is_changed(old);
  if (!old.empty() && own && only_consumer(old) == static_cast<int64_t>(index)) return old;
  std::string name = names_.make(old.empty() ? target.outputs[0] + "_bias" : old + "_folded");
  target.inputs[input] = name;
  release(old, index);
  uses_[name].consumers = {index};
  return name;
}

void FoldGraph::assign(size_t index, size_t input, Weights constant) {
  changed_[name_to_assign(index, input)] = std::move(constant);
}

void FoldGraph::assign(size_t index, size_t input, ScaledWeights weights) {
  scaled_[name_to_assign(index, input)] = std::move(weights);
}

void FoldGraph::remove_behind(size_t producer, size_t norm) {
  const std::string before = node(producer).outputs[0], after = node(norm).outputs[0];
  removed_[norm] = true;
  for (size_t i = kNormGamma; i < node(norm).inputs.size(); ++i) release(node(norm).inputs[i], norm);
  node(producer).outputs[0] = after;
  uses_[after].producer = static_cast<int64_t>(producer);
  uses_.erase(before);
  gone_.insert(before);
}

void FoldGraph::remove_in_front(size_t norm) {
  const std::string before = node(norm).inputs[0], after = node(norm).outputs[0];
  removed_[norm] = true;
  for (size_t i = kNormGamma; i < node(norm).inputs.size(); ++i) release(node(norm).inputs[i], norm);
  auto& consumers = uses_[before].consumers;
  if (const auto use = std::find(consumers.begin(), consumers.end(), norm); use != consumers.end())
    consumers.erase(use);
  for (const size_t reader : uses(after).consumers) {
    for (std::string& input : node(reader).inputs) {
      if (input == after) input = before;
    }
    consumers.push_back(reader);
  }
  uses_.erase(after);
  gone_.insert(after);
}

void FoldGraph::set_initializer(onnx::TensorValue tensor) {
  const bool is_new = !initializers_.contains(tensor.name);
  onnx::ValueInfo info{.name = tensor.name, .type = tensor.type, .dims = std::vector<onnx::Dim>()};
  for (const int64_t extent : tensor.dims) info.dims->push_back({.value = extent, .symbol = ""});
  // IR 3 and older list every initializer as an input; an input that is listed has to be of the new shape.
  const auto input = std::find_if(graph_.inputs.begin(), graph_.inputs.end(),
                                  [&](const onnx::ValueInfo& known) { return known.name == tensor.name; });
  if (input != graph_.inputs.end()) {
    const bool same = input->dims && input->dims->size() == tensor.dims.size() &&
                      std::equal(tensor.dims.begin(), tensor.dims.end(), input->dims->begin(),
                                 [](int64_t extent, const onnx::Dim& dim) { return dim.value == extent; });
    if (!same) *input = std::move(info);
  } else if (is_new && model_.ir_version < 4 && !is_body_) {
    graph_.inputs.push_back(std::move(info));
  }
  graph_.set_initializer(std::move(tensor));
}

void FoldGraph::finish(std::set<std::string>& unused) {
  for (const auto& [name, constant] : changed_) {
    if (!uses(name).consumers.empty())
      set_initializer(onnx::tensor_as(constant.type, name, constant.dims, constant.values));
  }
  for (const auto& [name, weights] : scaled_) {
    if (!uses(name).consumers.empty()) set_initializer(weights.tensor(name));
  }
  std::vector<onnx::Node> kept;
  kept.reserve(graph_.nodes.size());
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    if (!removed_[i]) kept.push_back(std::move(graph_.nodes[i]));
  }
  graph_.nodes = std::move(kept);
  std::erase_if(graph_.value_infos, [&](const onnx::ValueInfo& info) { return gone_.contains(info.name); });
  unused.insert(unused_.begin(), unused_.end());
}

}  // namespace evenkeel::tools
