#include "evenkeel/tools/fold_linear.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/core/text.h"

namespace evenkeel::tools {
namespace {

constexpr size_t kWeight = 1, kBias = 2;

bool has_input(const onnx::Node& node, size_t input) {
  return node.inputs.size() > input && !node.inputs[input].empty();
}

bool any_above(const std::vector<int64_t>& values, int64_t limit) {
  return std::any_of(values.begin(), values.end(), [&](int64_t value) { return value > limit; });
}

}  // namespace

bool is_product(const onnx::Node& node) {
  return node.domain.empty() && (node.op_type == "Conv" || node.op_type == "ConvTranspose" || node.op_type == "Gemm" ||
                                 node.op_type == "MatMul");
}

std::string word_of_product(const onnx::Node& node) { return lower(node.op_type); }

bool Product::scale_and_shift_outputs(const Affine& affine) {
  weights.scale_outputs(affine.scale);
  std::vector<double> factor = affine.scale;
  if (matrix) {
    for (double& f : factor) f *= beta;
  } else if (addend && static_cast<int64_t>(addend->values.size()) != outputs()) {
    return false;
  }
  addend = affine_addend(addend ? &*addend : nullptr, factor, affine.shift, weights.type());
  beta = 1;
  return addend.has_value();
}

bool Product::absorb_input(const Affine& affine) {
  std::vector<double> response = weights.response_to(affine.shift);
  weights.scale_inputs(affine.scale);
  for (double& value : response) value *= alpha;
  const bool shifted = std::any_of(response.begin(), response.end(), [](double value) { return value != 0; });
  if (!shifted) return true;
  if (!matrix && addend && addend->values.size() != response.size()) return false;
  const std::vector<double> factor(response.size(), beta);
  addend = affine_addend(addend ? &*addend : nullptr, factor, response, weights.type());
  beta = 1;
  return addend.has_value();
}

std::string Product::unstorable() const {
  const auto sentence = [](const char* what, int64_t at, double value, onnx::ElementType type) {
    return fmt::format("folded, {} {} would be {}, which {} does not hold", what, at, value, onnx::name_of(type));
  };
  if (const auto bad = weights.unstorable()) return sentence("weight", bad->index, bad->value, weights.type());
  if (!addend) return "";
  const int64_t at = first_unstorable(*addend);
  return at < 0 ? "" : sentence("bias", at, addend->values[static_cast<size_t>(at)], addend->type);
}

std::optional<Product> product_at(const FoldGraph& graph, size_t index, std::string& reason) {
  const onnx::Node& node = graph.node(index);
  const std::string name = node.label();
  if (!is_product(node)) {
    reason = name + " is no product with constant weights";
    return std::nullopt;
  }
  Product product{.node = index, .weights = {}, .addend = {}};
  product.matrix = node.op_type == "Gemm" || node.op_type == "MatMul";
  LinearForm form;
  if (product.matrix) {
    form.form = node.integer("transB", 0) != 0 ? WeightForm::kMatrixOfRows : WeightForm::kMatrix;
    product.alpha = static_cast<double>(node.number("alpha", 1));
    product.beta = static_cast<double>(node.number("beta", 1));
  } else {
    form.form = node.op_type == "Conv" ? WeightForm::kConv : WeightForm::kConvTranspose;
    form.groups = node.integer("group", 1);
  }
  std::optional<ScaledWeights> weights;
  if (has_input(node, kWeight)) weights = graph.weights(node.inputs[kWeight], form, reason);
  if (!weights) {
    reason = reason.empty() ? fmt::format("the weights of {} are computed at run time, or no floating numbers", name)
                            : fmt::format("{} has {}", name, reason);
    return std::nullopt;
  }
  product.weights = std::move(*weights);
  if (!has_input(node, kBias)) return product;
  product.addend = graph.constant(node.inputs[kBias]);
  if (!product.addend) {
    reason = fmt::format("the bias of {} is computed at run time, or no floating numbers", name);
    return std::nullopt;
  }
  return product;
}

void assign(FoldGraph& graph, Product product) {
  onnx::Node& node = graph.node(product.node);
  graph.assign(product.node, kWeight, std::move(product.weights));
  if (!product.addend) return;
  if (node.op_type == "MatMul") {
    node.op_type = "Gemm";
    if (graph.opset() < 7) node.set("broadcast", int64_t{1});
  }
  if (product.matrix && static_cast<double>(node.number("beta", 1)) != product.beta)
    node.set("beta", static_cast<float>(product.beta));
  graph.assign(product.node, kBias, std::move(*product.addend));
}

bool is_unpadded(const onnx::Node& node, const Product& product) {
  const std::vector<int64_t> kernel(product.weights.dims().begin() + 2, product.weights.dims().end());
  const bool single = !any_above(kernel, 1);  // every output meets one input pixel: nothing can be cut off
  const std::string automatic = node.text("auto_pad", "NOTSET");
  if (node.op_type == "ConvTranspose") {
    // Outputs meet the same taps only where each has exactly one, the same.
    return single && !any_above(node.integers("strides"), 1) && !any_above(node.integers("output_padding"), 0) &&
           node.integers("output_shape").empty();
  }
  if (automatic == "VALID") return true;
  if (automatic != "NOTSET" && !automatic.empty()) return single;
  return !any_above(node.integers("pads"), 0);
}

}  // namespace evenkeel::tools
