// What the tests of folding share: a network in the making, and a fold that is compared with a plain interpreter in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/fold.h"
#include "evenkeel/tools/naive_onnx_testing.h"

namespace evenkeel::tools {

// A small network in the making. Constants are float64, so that what is compared is the formulas, not their rounding.
class Net {
 public:
  Net() {
    model.opsets[""] = 15;
    model.graph.name = "g";
  }
  Net& input(const std::string& name, const Shape& dims) {
    inputs[name] = {dims, random(element_count(dims), -2, 2)};
    onnx::ValueInfo info{.name = name, .type = onnx::ElementType::kDouble, .dims = std::vector<onnx::Dim>()};
    for (const int64_t extent : dims) info.dims->push_back({.value = extent, .symbol = ""});
    model.graph.inputs.push_back(info);
    return *this;
  }
  Net& constant(const std::string& name, const Shape& dims, double low = -1, double high = 1) {
    const std::vector<double> values = random(element_count(dims), low, high);
    graph->initializers.push_back(onnx::make_tensor(name, dims, std::span<const double>(values)));
    return *this;
  }
  onnx::Node& node(const std::string& op, std::vector<std::string> in, const std::string& out) {
    graph->nodes.push_back({.op_type = op,
                            .domain = "",
                            .name = op + "_" + out,
                            .inputs = std::move(in),
                            .outputs = {out},
                            .attributes = {}});
    return graph->nodes.back();
  }
  // A norm with parameters of its own; a letter of theirs in front of its output's name.
  onnx::Node& norm(const std::string& in, const std::string& out, int64_t channels) {
    constant("g_" + out, {channels}, 0.5, 2).constant("b_" + out, {channels});
    constant("m_" + out, {channels}).constant("v_" + out, {channels}, 0.1, 3);
    return node("BatchNormalization", {in, "g_" + out, "b_" + out, "m_" + out, "v_" + out}, out);
  }
  Net& output(const std::string& name) {
    graph->outputs.push_back({.name = name, .dims = {}});
    return *this;
  }
  naive::Values run(const onnx::Model& of) const {
    naive::Values values = inputs;
    naive::run(of.graph, values);
    return values;
  }
  std::vector<double> random(int64_t n, double low, double high) {
    std::vector<double> values;
    for (int64_t i = 0; i < n; ++i) values.push_back(std::uniform_real_distribution<double>(low, high)(generator_));
    return values;
  }

  onnx::Model model;
  onnx::Graph* graph = &model.graph;
  naive::Values inputs;

 private:
  std::mt19937_64 generator_{7};
};

// The largest difference of the outputs, against the largest value.
inline double difference(const naive::Array& a, const naive::Array& b) {
  EXPECT_EQ(a.dims, b.dims);
  double worst = 0, largest = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    worst = std::max(worst, std::abs(a.values[i] - b.values[i]));
    largest = std::max(largest, std::abs(a.values[i]));
  }
  return worst / largest;
}

inline size_t norms_in(const onnx::Graph& graph) {
  return static_cast<size_t>(std::count_if(graph.nodes.begin(), graph.nodes.end(),
                                           [](const onnx::Node& n) { return n.op_type == "BatchNormalization"; }));
}

// Folds a copy and compares every output of the graph with that of the original. Sums of some tens of doubles: 1e-13 of the largest.
inline FoldRecord folded(const Net& net, onnx::Model* result = nullptr, const FoldOptions& options = {}) {
  onnx::Model model = net.model;
  const naive::Values before = net.run(net.model);
  FoldRecord record = fold(model, options);
  EXPECT_EQ(record.left.size(), norms_in(model.graph));
  const naive::Values after = net.run(model);
  for (const onnx::ValueInfo& output : net.model.graph.outputs)
    EXPECT_LT(difference(before.at(output.name), after.at(output.name)), 1e-13) << output.name;
  // It survives the file, and nothing is left over there.
  const onnx::Model read = onnx::parse(onnx::serialize(model), "folded");
  for (const onnx::TensorValue& tensor : read.graph.initializers)
    EXPECT_FALSE(onnx::uses_of(read.graph).at(tensor.name).consumers.empty()) << tensor.name << " is not used";
  if (result != nullptr) *result = std::move(model);
  return record;
}

inline std::vector<std::string> patterns_of(const FoldRecord& record) {
  std::vector<std::string> patterns;
  for (const FoldedNorm& norm : record.folded) patterns.push_back(norm.pattern);
  return patterns;
}

}  // namespace evenkeel::tools
