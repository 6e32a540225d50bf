#include "evenkeel/tools/fold_patterns.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/tools/fold_linear.h"

namespace evenkeel::tools {
namespace {

FoldAttempt refuse(std::string reason) { return {.done = false, .reason = std::move(reason)}; }

int64_t channels_of(const Affine& affine) { return static_cast<int64_t>(affine.scale.size()); }

// Why the values that `producer` makes may not change; "" = only `reader` sees them.
std::string others_see(const FoldGraph& graph, size_t producer, size_t reader) {
  const std::string& value = graph.node(producer).outputs[0];
  if (graph.only_consumer(value) == static_cast<int64_t>(reader)) return "";
  const onnx::Uses& use = graph.uses(value);
  if (use.graph_output)
    return fmt::format("what {} makes is an output of the graph, too", graph.node(producer).label());
  for (const size_t other : use.consumers) {
    if (other != reader)
      return fmt::format("what {} makes is read by {}, too", graph.node(producer).label(), graph.node(other).label());
  }
  return fmt::format("what {} makes is read twice by {}", graph.node(producer).label(), graph.node(reader).label());
}

std::string channels_differ(const FoldGraph& graph, size_t node, const char* which, int64_t found, int64_t expected) {
  return fmt::format("{} has {} {} channels where the norm has {}", graph.node(node).label(), found, which, expected);
}

// A norm normalizes the second extent: that of a product of matrices has to be its columns. "" = it is.
std::string not_a_matrix(const FoldGraph& graph, const std::string& value, const onnx::Node& node) {
  if (node.op_type != "MatMul") return "";
  const size_t rank = graph.rank_of(value);
  if (rank == 2) return "";
  return rank == 0
             ? fmt::format("how many extents {} sees is not known, and only with 2 are the norm's channels its columns",
                           node.label())
             : fmt::format("{} sees {} extents, and only with 2 are the norm's channels its columns", node.label(),
                           rank);
}

FoldAttempt into_product(FoldGraph& graph, size_t producer, size_t norm, const Affine& affine) {
  if (const std::string others = others_see(graph, producer, norm); !others.empty()) return refuse(others);
  std::string reason;
  std::optional<Product> product = product_at(graph, producer, reason);
  if (!product) return refuse(reason);
  const onnx::Node& node = graph.node(producer);
  if (const std::string why = not_a_matrix(graph, node.outputs[0], node); !why.empty()) return refuse(why);
  if (product->outputs() != channels_of(affine))
    return refuse(channels_differ(graph, producer, "output", product->outputs(), channels_of(affine)));
  if (!product->scale_and_shift_outputs(affine))
    return refuse(fmt::format("the bias of {} has a shape that does not fit", node.label()));
  if (const std::string why = product->unstorable(); !why.empty()) return refuse(why);

  FoldAttempt attempt{.done = true, .pattern = word_of_product(node) + " -> norm", .into = {short_name(node)}};
  assign(graph, std::move(*product));
  graph.remove_behind(producer, norm);
  attempt.outputs = {graph.node(producer).outputs[0]};
  return attempt;
}

// product -> Add of constants -> norm
FoldAttempt into_sum(FoldGraph& graph, size_t sum, size_t norm, const Affine& affine) {
  const onnx::Node& add = graph.node(sum);
  if (graph.opset() < 7 || add.inputs.size() != 2) return refuse(add.label() + " is no product with constant weights");
  if (const std::string others = others_see(graph, sum, norm); !others.empty()) return refuse(others);
  const size_t side = graph.constant(add.inputs[0]) ? 0 : 1;
  const std::optional<Weights> constant = graph.constant(add.inputs[side]);
  const int64_t producer = graph.uses(add.inputs[1 - side]).producer;
  if (!constant || producer < 0 || !is_product(graph.node(static_cast<size_t>(producer))))
    return refuse(fmt::format("{} does not add constants to a product", add.label()));

  const auto index = static_cast<size_t>(producer);
  const onnx::Node& node = graph.node(index);
  if (const std::string others = others_see(graph, index, sum); !others.empty()) return refuse(others);
  std::string reason;
  std::optional<Product> product = product_at(graph, index, reason);
  if (!product) return refuse(reason);
  if (const std::string why = not_a_matrix(graph, node.outputs[0], node); !why.empty()) return refuse(why);
  if (product->outputs() != channels_of(affine))
    return refuse(channels_differ(graph, index, "output", product->outputs(), channels_of(affine)));
  const size_t rank = product->matrix ? 2 : product->weights.dims().size();
  const auto addend = per_channel(*constant, rank, channels_of(affine));
  if (!addend) return refuse(fmt::format("{} adds values that differ within a channel", add.label()));

  Weights sum_constant{constant->type, Shape(rank - 1, 1), *addend};
  sum_constant.dims[0] = channels_of(affine);
  for (size_t c = 0; c < addend->size(); ++c) sum_constant.values[c] = (*addend)[c] * affine.scale[c] + affine.shift[c];
  if (first_unstorable(sum_constant) >= 0) return refuse("folded, the constants added would be too large");
  if (product->addend) {
    const Affine only_scale{affine.scale, std::vector<double>(affine.scale.size(), 0.0)};
    if (!product->scale_and_shift_outputs(only_scale))
      return refuse(fmt::format("the bias of {} has a shape that does not fit", node.label()));
  } else {
    product->weights.scale_outputs(affine.scale);
  }
  if (const std::string why = product->unstorable(); !why.empty()) return refuse(why);

  FoldAttempt attempt{
      .done = true, .pattern = word_of_product(node) + "+add -> norm", .into = {short_name(node), short_name(add)}};
  assign(graph, std::move(*product));
  graph.assign(sum, side, std::move(sum_constant));
  graph.remove_behind(sum, norm);
  attempt.outputs = {graph.node(sum).outputs[0]};
  return attempt;
}

FoldAttempt into_norm(FoldGraph& graph, size_t first, size_t norm, const Affine& affine) {
  if (const std::string others = others_see(graph, first, norm); !others.empty()) return refuse(others);
  const onnx::Node& node = graph.node(first);
  const NormNode before = graph.norm(first);
  if (before.batch_statistics || !before.spatial || !before.computed.empty())
    return refuse(fmt::format("{} is not a norm with stored statistics for every channel", node.label()));
  if (before.channels() != channels_of(affine))
    return refuse(channels_differ(graph, first, "", before.channels(), channels_of(affine)));
  // The first keeps its statistics: scale * (gamma * xhat + beta) + shift.
  Weights gamma = *graph.constant(node.inputs[kNormGamma]), beta = *graph.constant(node.inputs[kNormBeta]);
  for (size_t c = 0; c < affine.scale.size(); ++c) {
    gamma.values[c] *= affine.scale[c];
    beta.values[c] = beta.values[c] * affine.scale[c] + affine.shift[c];
  }
  if (first_unstorable(gamma) >= 0 || first_unstorable(beta) >= 0)
    return refuse(fmt::format("folded, gamma or beta of {} would be too large", node.label()));

  FoldAttempt attempt{.done = true, .pattern = "norm -> norm", .into = {short_name(node)}};
  graph.assign(first, kNormGamma, std::move(gamma));
  graph.assign(first, kNormBeta, std::move(beta));
  graph.remove_behind(first, norm);
  attempt.outputs = {graph.node(first).outputs[0]};
  return attempt;
}

// The product that reads the norm, with the norm in it; nothing with the reason where that is not exact.
std::optional<Product> taken_in(const FoldGraph& graph, size_t reader, const std::string& value, const Affine& affine,
                                std::string& reason) {
  const onnx::Node& node = graph.node(reader);
  if (std::count(node.inputs.begin(), node.inputs.end(), value) != 1 || node.inputs[0] != value) {
    reason = is_product(node) ? fmt::format("{} reads it as weights or bias, too", node.label())
                              : node.label() + " is no product with constant weights";
    return std::nullopt;
  }
  std::optional<Product> product = product_at(graph, reader, reason);
  if (!product) return std::nullopt;
  reason = not_a_matrix(graph, value, node);
  if (reason.empty() && node.integer("transA", 0) != 0)
    reason = fmt::format("{} transposes its input: the norm's channels are its rows", node.label());
  if (reason.empty() && product->inputs() != channels_of(affine))
    reason = channels_differ(graph, reader, "input", product->inputs(), channels_of(affine));
  if (reason.empty() && !product->matrix && !is_unpadded(node, *product) &&
      !product->weights.is_blind_to(affine.shift)) {
    const double largest = std::abs(*std::max_element(affine.shift.begin(), affine.shift.end(),
                                                      [](double a, double b) { return std::abs(a) < std::abs(b); }));
    reason = node.op_type == "Conv"
                 ? fmt::format(
                       "{} pads with zeros, and the norm shifts channels by up to {:.3g}: it would be inexact at the "
                       "borders",
                       node.label(), largest)
                 : fmt::format("{} covers its outputs unevenly, and the norm shifts channels by up to {:.3g}",
                               node.label(), largest);
  }
  if (reason.empty() && !product->absorb_input(affine))
    reason = fmt::format("the bias of {} has a shape that does not fit", node.label());
  if (reason.empty()) reason = product->unstorable();
  return reason.empty() ? product : std::nullopt;
}

}  // namespace

FoldAttempt fold_behind(FoldGraph& graph, size_t norm, const Affine& affine) {
  const std::string& input = graph.node(norm).inputs[0];
  const int64_t producer = graph.uses(input).producer;
  if (producer < 0) return refuse(fmt::format("'{}' is not made by a node of this graph", input));
  const auto index = static_cast<size_t>(producer);
  const onnx::Node& node = graph.node(index);
  if (is_product(node)) return into_product(graph, index, norm, affine);
  if (is_batch_norm(node)) return into_norm(graph, index, norm, affine);
  if (node.domain.empty() && node.op_type == "Add") return into_sum(graph, index, norm, affine);
  return refuse(node.label() + " is no product with constant weights");
}

FoldAttempt fold_in_front(FoldGraph& graph, size_t norm, const Affine& affine) {
  const std::string value = graph.node(norm).outputs[0];
  const onnx::Uses use = graph.uses(value);
  if (use.graph_output) return refuse("its own output is an output of the graph");
  if (use.consumers.empty()) return refuse("nobody reads it");
  std::vector<Product> products;
  for (const size_t reader : use.consumers) {
    std::string reason;
    std::optional<Product> product = taken_in(graph, reader, value, affine, reason);
    if (!product) return refuse(reason);
    products.push_back(std::move(*product));
  }
  FoldAttempt attempt{.done = true, .pattern = "norm -> " + word_of_product(graph.node(products[0].node))};
  for (Product& product : products) {
    attempt.into.push_back(short_name(graph.node(product.node)));
    attempt.outputs.push_back(graph.node(product.node).outputs[0]);
    assign(graph, std::move(product));
  }
  graph.remove_in_front(norm);
  return attempt;
}

}  // namespace evenkeel::tools
