// The norms of an ONNX model, with their neighbours.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "evenkeel/tools/fold_graph.h"
#include "evenkeel/tools/fold_linear.h"
#include "evenkeel/tools/norm_table.h"
#include "evenkeel/tools/onnx_metadata.h"

namespace evenkeel::tools {
namespace {

std::string named(const onnx::Node& node) { return fmt::format("{} '{}'", node.op_type, short_name(node)); }

bool is_any(const onnx::Node& node, std::initializer_list<const char*> op_types) {
  return node.domain.empty() &&
         std::any_of(op_types.begin(), op_types.end(), [&](const char* op) { return node.op_type == op; });
}

// What stands around the norms of one graph.
class Surroundings {
 public:
  Surroundings(onnx::Model& model, onnx::Graph& graph, const onnx::Constants& constants, FreshNames& names, bool body)
      : model_(model), graph_(graph), constants_(constants), work_(model, graph, constants, names, body) {}

  NormRecord record(size_t index, bool is_body) const {
    const onnx::Node& node = graph_.nodes[index];
    const int64_t opset = model_.opset();
    const NormNode norm = read_norm(node, opset, constants_);
    NormRecord record{.name = norm_name(node), .output = is_body ? "" : node.outputs[0]};
    record.eps = norm.eps;
    record.new_batch_weight = new_batch_weight_of(Dialect::kOnnx, norm.old_weight);
    record.training = norm.batch_statistics;
    record.spatial = norm.spatial;
    record.gamma = norm.gamma;
    record.beta = norm.beta;
    if (norm.has_statistics) record.mean = norm.mean;
    if (norm.has_statistics) record.var = norm.var;
    record.has_statistics = norm.has_statistics;
    if (!norm.computed.empty()) record.unreadable = norm.computed + " is computed at run time";
    record.channels =
        static_cast<int64_t>(std::max({norm.gamma.size(), norm.beta.size(), norm.mean.size(), norm.var.size()}));
    if (!is_body) record.missing = unmade_inputs(node);
    add_front(node, record);
    add_behind(node, record);
    return record;
  }

 private:
  // Of the five, what no node makes and is neither an input nor a constant.
  std::vector<std::string> unmade_inputs(const onnx::Node& node) const {
    std::vector<std::string> names;
    for (size_t i = 0; i <= kNormVar; ++i) {
      const std::string& name = node.inputs[i];
      const bool is_input = std::any_of(graph_.inputs.begin(), graph_.inputs.end(),
                                        [&](const onnx::ValueInfo& input) { return input.name == name; });
      if (!is_input && constants_.find(name) == nullptr && work_.uses(name).producer < 0) names.push_back(name);
    }
    return names;
  }

  void add_front(const onnx::Node& node, NormRecord& record) const {
    const std::string& input = node.inputs[0];
    const int64_t producer = work_.uses(input).producer;
    record.values_per_channel = values_per_channel(input);
    if (producer < 0) {
      record.fed_by.push_back(fmt::format("input '{}'", input));
      return;
    }
    const onnx::Node& front = graph_.nodes[static_cast<size_t>(producer)];
    record.fed_by.push_back(named(front));
    if (is_any(front, {"Add", "Sub", "Mul", "Sum", "Concat", "Max", "Min", "Mean"})) add_streams(front, record);
    if (is_product(front)) add_product(static_cast<size_t>(producer), record);
    add_misfit(static_cast<size_t>(producer), record);
    if (front.op_type == "Add" && front.inputs.size() == 2) add_bias_of_sum(front, record);
  }

  void add_streams(const onnx::Node& front, NormRecord& record) const {
    for (const std::string& input : front.inputs) {
      if (constants_.find(input) != nullptr) continue;
      const int64_t maker = work_.uses(input).producer;
      record.streams.push_back(maker < 0 ? fmt::format("input '{}'", input)
                                         : named(graph_.nodes[static_cast<size_t>(maker)]));
    }
    if (record.streams.size() < 2) record.streams.clear();
  }

  void add_product(size_t producer, NormRecord& record) const {
    std::string reason;
    const std::optional<Product> product = product_at(work_, producer, reason);
    if (!product) return;
    const onnx::Node& node = graph_.nodes[producer];
    const bool biased = product->addend && std::any_of(product->addend->values.begin(), product->addend->values.end(),
                                                       [](double value) { return value != 0; });
    // Gemm's C may be a matrix, which the norm does not take away.
    const bool even = biased && (!product->matrix || per_channel(*product->addend, 2, record.channels).has_value());
    if (even && only_norms_read(node.outputs[0])) record.bias_in_front = node.inputs[2];
    if (product->outputs() == record.channels) record.weight_range = largest_per_output(*product);
  }

  // What a MatMul makes may have its channels elsewhere than in the last extent's place.
  void add_misfit(size_t producer, NormRecord& record) const {
    const onnx::Node& front = graph_.nodes[producer];
    std::string reason;
    if (!is_any(front, {"Conv", "ConvTranspose", "Gemm"}) || !record.spatial || record.channels == 0) return;
    const std::optional<Product> product = product_at(work_, producer, reason);
    if (!product || product->outputs() == record.channels) return;
    record.misfit = fmt::format("{} makes {} channels, and the norm has parameters of {}", named(front),
                                product->outputs(), record.channels);
  }

  // MatMul -> Add(constant) -> norm: a bias by another name.
  void add_bias_of_sum(const onnx::Node& sum, NormRecord& record) const {
    const size_t side = constants_.find(sum.inputs[0]) != nullptr ? 0 : 1;
    const int64_t producer = work_.uses(sum.inputs[1 - side]).producer;
    if (constants_.find(sum.inputs[side]) == nullptr || producer < 0) return;
    if (!is_product(graph_.nodes[static_cast<size_t>(producer)])) return;
    add_product(static_cast<size_t>(producer), record);
    // A table of values for each place is not taken away.
    const std::optional<Weights> constant = work_.constant(sum.inputs[side]);
    std::string reason;
    const std::optional<Product> product = product_at(work_, static_cast<size_t>(producer), reason);
    if (!product) return;
    // A rank that is not known is most likely that of a matrix.
    const size_t rank =
        product->matrix ? std::max<size_t>(2, work_.rank_of(sum.outputs[0])) : product->weights.dims().size();
    if (!constant || !per_channel(*constant, rank, record.channels)) return;
    record.bias_in_front = only_norms_read(sum.outputs[0]) ? sum.inputs[side] : "";
  }

  // To any other reader, or as an output of the graph, a bias is worth something.
  bool only_norms_read(const std::string& value) const {
    const onnx::Uses& use = work_.uses(value);
    return !use.graph_output && std::all_of(use.consumers.begin(), use.consumers.end(),
                                            [&](size_t reader) { return is_batch_norm(graph_.nodes[reader]); });
  }

  void add_behind(const onnx::Node& node, NormRecord& record) const {
    const onnx::Uses& use = work_.uses(node.outputs[0]);
    std::set<size_t> seen;
    for (const size_t reader : use.consumers) {
      if (!seen.insert(reader).second) continue;
      const onnx::Node& behind = graph_.nodes[reader];
      record.feeds.push_back(named(behind));
      std::string reason;
      if (!is_any(behind, {"Conv"}) || behind.inputs[0] != node.outputs[0] || !record.padded_behind.empty()) continue;
      const std::optional<Product> product = product_at(work_, reader, reason);
      if (product && !is_unpadded(behind, *product) && !pads_nothing(behind, *product, node))
        record.padded_behind = named(behind);
    }
    record.closes_branch = closes_branch(node.outputs[0]);
    if (use.graph_output) record.feeds.push_back(fmt::format("output '{}'", node.outputs[0]));
  }

  // True where the value ends in a sum without another product or norm in between: the end of a residual branch, not the trunk, which a
  // product reads as well. What only looks at means (squeeze and excitation) does not count.
  bool closes_branch(const std::string& value) const {
    std::vector<std::string> open = {value};
    std::set<std::string> seen;
    bool summed = false;
    while (!open.empty()) {
      const std::string name = std::move(open.back());
      open.pop_back();
      if (!seen.insert(name).second) continue;
      for (const size_t reader : work_.uses(name).consumers) {
        const onnx::Node& behind = graph_.nodes[reader];
        if (is_any(behind, {"GlobalAveragePool", "ReduceMean"})) continue;
        if (is_product(behind) || is_batch_norm(behind)) return false;
        const bool sum = is_any(behind, {"Add", "Sum"}) &&
                         std::none_of(behind.inputs.begin(), behind.inputs.end(),
                                      [&](const std::string& input) { return constants_.find(input) != nullptr; });
        summed = summed || sum;
        if (!sum) open.insert(open.end(), behind.outputs.begin(), behind.outputs.end());
      }
    }
    return summed;
  }

  // SAME_UPPER and SAME_LOWER: what they pad depends on the extents, which the file may fix.
  bool pads_nothing(const onnx::Node& conv, const Product& product, const onnx::Node& norm) const {
    if (!conv.text("auto_pad", "NOTSET").starts_with("SAME")) return false;
    const onnx::ValueInfo* declared = nullptr;
    for (const std::string& value : {norm.outputs[0], norm.inputs[0]}) {
      for (const auto* list : {&graph_.value_infos, &graph_.inputs}) {
        for (const onnx::ValueInfo& info : *list) {
          if (info.name == value && info.dims) declared = &info;
        }
      }
    }
    const Shape& weights = product.weights.dims();
    if (declared == nullptr || declared->dims->size() != weights.size()) return false;
    const std::vector<int64_t> ones(weights.size(), 1);
    const std::vector<int64_t> strides = conv.integers("strides", ones), dilations = conv.integers("dilations", ones);
    for (size_t i = 2; i < weights.size(); ++i) {
      const std::optional<int64_t> extent = (*declared->dims)[i].value;
      if (!extent || *extent < 1 || *extent > (int64_t{1} << 30) || i - 2 >= strides.size() ||
          i - 2 >= dilations.size())
        return false;
      const int64_t stride = strides[i - 2], dilation = dilations[i - 2];
      if (stride < 1 || dilation < 1 || stride > *extent || dilation > *extent) return false;
      const int64_t outputs = (*extent + stride - 1) / stride;
      if ((outputs - 1) * stride + (weights[i] - 1) * dilation + 1 > *extent) return false;
    }
    return true;
  }

  static std::vector<double> largest_per_output(const Product& product) {
    std::vector<double> largest = product.weights.largest_per_output();
    for (double& value : largest) value *= std::abs(product.alpha);
    return largest;
  }

  std::optional<int64_t> values_per_channel(const std::string& value) const {
    for (const auto* list : {&graph_.value_infos, &graph_.inputs, &graph_.outputs}) {
      for (const onnx::ValueInfo& info : *list) {
        if (info.name != value || !info.dims || info.dims->size() < 2) continue;
        int64_t count = 1;
        for (size_t i = 0; i < info.dims->size(); ++i) {
          const std::optional<int64_t> extent = (*info.dims)[i].value;
          if (!extent || *extent < 0 || *extent > (int64_t{1} << 20) || count > (int64_t{1} << 40)) return std::nullopt;
          if (i != 1) count *= *extent;
        }
        return count;
      }
    }
    return std::nullopt;
  }

  onnx::Model& model_;
  onnx::Graph& graph_;
  const onnx::Constants& constants_;
  FoldGraph work_;
};

struct Collected {
  NormTable table;
  std::map<std::string, std::string> by_statistics;  // the mean's name -> the norm that came first
};

void collect(onnx::Model& model, onnx::Graph& graph, const onnx::Constants* outer, const std::string& path,
             FreshNames& names, Collected& all) {
  const onnx::Constants constants(graph, outer);
  const Surroundings around(model, graph, constants, names, outer != nullptr);
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    onnx::Node& node = graph.nodes[i];
    for (onnx::Attribute& attribute : node.attributes) {
      if (attribute.graph)
        collect(model, *attribute.graph, &constants, path + short_name(node) + "/" + attribute.name + "/", names, all);
    }
    if (!is_batch_norm(node)) continue;
    NormRecord record = around.record(i, outer != nullptr);
    record.name = path + record.name;
    const auto [first, is_new] = all.by_statistics.emplace(node.inputs[kNormMean], record.name);
    if (!is_new) {
      record.shares_with = first->second;
      if (first->second == record.name) record.name += " -> " + node.outputs[0];
    }
    all.table.norms.push_back(std::move(record));
  }
}

}  // namespace

NormTable norm_table(const onnx::Model& model) {
  onnx::Model copy = model;  // shares the tensors; nothing of it is changed
  FreshNames names(copy.graph);
  Collected all;
  all.table.format = fmt::format("ONNX, opset {}, IR {}", model.opset(), model.ir_version);
  if (!model.producer_name.empty()) all.table.format += ", made by " + model.producer_name;
  collect(copy, copy.graph, nullptr, "", names, all);
  const RunningVariance variance = stated_statistics(model).variance;
  for (NormRecord& norm : all.table.norms) norm.variance_kind = variance;
  return std::move(all.table);
}

}  // namespace evenkeel::tools
