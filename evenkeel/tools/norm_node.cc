#include "evenkeel/tools/norm_node.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "evenkeel/core/error.h"

namespace evenkeel::tools {
namespace {

constexpr const char* kParameterWords[] = {"gamma", "beta", "the mean", "the variance"};

bool is_floating(onnx::ElementType type) {
  using onnx::ElementType;
  return type == ElementType::kFloat || type == ElementType::kDouble || type == ElementType::kFloat16 ||
         type == ElementType::kBfloat16;
}

}  // namespace

bool is_batch_norm(const onnx::Node& node) { return node.domain.empty() && node.op_type == "BatchNormalization"; }

std::string short_name(const onnx::Node& node) {
  if (!node.name.empty()) return node.name;
  return node.outputs.empty() ? node.op_type : node.outputs[0];
}

std::string norm_name(const onnx::Node& node) {
  if (node.inputs.size() > kNormMean) {
    const std::string& mean = node.inputs[kNormMean];
    for (const std::string_view ending : {".running_mean", "/moving_mean", "/moving_mean:0", "/moving_mean/read"}) {
      if (mean.size() > ending.size() && mean.ends_with(ending)) return mean.substr(0, mean.size() - ending.size());
    }
  }
  return short_name(node);
}

double epsilon_of(const onnx::Node& node) { return static_cast<double>(node.number("epsilon", 1e-5F)); }

bool uses_batch_statistics(const onnx::Node& node, int64_t opset) {
  if (opset >= 14) return node.integer("training_mode", 0) != 0;
  if (opset < 7) return node.integer("is_test", 0) == 0;
  // Opset 7 to 13: the further outputs are those of training, and only their presence tells.
  return std::any_of(node.outputs.begin() + std::min<std::ptrdiff_t>(1, std::ssize(node.outputs)), node.outputs.end(),
                     [](const std::string& output) { return !output.empty(); });
}

NormNode read_norm(const onnx::Node& node, int64_t opset, const onnx::Constants& constants) {
  if (node.inputs.size() < 5 || node.outputs.empty()) {
    throw FormatError(fmt::format("{}: a BatchNormalization has five inputs and an output; found {} and {}",
                                  node.label(), node.inputs.size(), node.outputs.size()));
  }
  NormNode norm;
  norm.eps = epsilon_of(node);
  norm.old_weight = static_cast<double>(node.number("momentum", 0.9F));
  norm.batch_statistics = uses_batch_statistics(node, opset);
  norm.spatial = opset >= 9 || node.integer("spatial", 1) != 0;
  std::vector<double>* const values[] = {&norm.gamma, &norm.beta, &norm.mean, &norm.var};
  bool is_constant[4] = {};
  for (size_t i = 0; i < 4; ++i) {
    const std::string& name = node.inputs[kNormGamma + i];
    const onnx::TensorValue* tensor = constants.find(name);
    is_constant[i] = tensor != nullptr && is_floating(tensor->type);
    if (is_constant[i]) {
      *values[i] = onnx::doubles_of(*tensor);
    } else if (norm.computed.empty()) {
      norm.computed = fmt::format("{} ('{}')", kParameterWords[i], name);
    }
  }
  size_t first = 0;  // that is a constant
  while (first < 4 && !is_constant[first]) ++first;
  for (size_t i = first + 1; i < 4; ++i) {
    if (is_constant[i] && values[i]->size() != values[first]->size()) {
      throw FormatError(fmt::format("{}: {} has {} values where {} has {}", node.label(), kParameterWords[i],
                                    values[i]->size(), kParameterWords[first], values[first]->size()));
    }
  }
  norm.has_statistics = is_constant[2] && is_constant[3];
  return norm;
}

Affine affine_of(const NormNode& norm) {
  Affine affine{.scale = norm.gamma, .shift = norm.beta};
  for (size_t c = 0; c < norm.gamma.size(); ++c) {
    affine.scale[c] = norm.gamma[c] / std::sqrt(norm.var[c] + norm.eps);
    affine.shift[c] = norm.beta[c] - norm.mean[c] * affine.scale[c];
  }
  return affine;
}

}  // namespace evenkeel::tools
