// A graph while norms are folded in it: who uses what, constants that were changed, nodes and values that are gone. Node indices stay as they
// are until finish().
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/tools/fold_weights.h"
#include "evenkeel/tools/norm_node.h"

namespace evenkeel::tools {

// Names that no value of a model has, bodies included: ONNX forbids a body to hide a name of the graphs around it.
class FreshNames {
 public:
  explicit FreshNames(const onnx::Graph& graph) { take(graph); }
  // `wish`, with a number behind it where that is taken.
  std::string make(const std::string& wish);

 private:
  void take(const onnx::Graph& graph);
  std::set<std::string, std::less<>> taken_;
};

class FoldGraph {
 public:
  // Everything must outlive it. is_body: new constants are never inputs of it, whatever the IR version.
  FoldGraph(onnx::Model& model, onnx::Graph& graph, const onnx::Constants& constants, FreshNames& names, bool is_body);

  size_t size() const { return graph_.nodes.size(); }
  onnx::Node& node(size_t index) { return graph_.nodes[index]; }
  const onnx::Node& node(size_t index) const { return graph_.nodes[index]; }
  bool removed(size_t index) const { return removed_[index]; }
  int64_t opset() const { return opset_; }

  // Of a value of this graph; all empty for one from outside that nobody reads.
  const onnx::Uses& uses(const std::string& value) const;
  // The only reader of a value that is no output of the graph; -1: none, or there are more.
  int64_t only_consumer(const std::string& value) const;

  // A constant of a floating type as it stands now; nothing where it is none.
  std::optional<Weights> constant(const std::string& value) const;
  // The same as the weights of a product; where they are a constant that cannot be such, `refusal` says why.
  std::optional<ScaledWeights> weights(const std::string& value, const LinearForm& form, std::string& refusal) const;
  NormNode norm(size_t index) const;
  // How many extents a value has, where the model declares it or it follows from what makes it; 0: not known.
  size_t rank_of(const std::string& value, int depth = 64) const;

  // The input of a node becomes a constant of these values: under the old name where nobody else reads it, else under a new one.
  void assign(size_t node, size_t input, Weights constant);
  void assign(size_t node, size_t input, ScaledWeights weights);
  // The norm goes: its input's producer writes the norm's output instead.
  void remove_behind(size_t producer, size_t norm);
  // The norm goes: its readers read what it read.
  void remove_in_front(size_t norm);

  // Carries it all out: nodes, initializers, declared values. Constants that were used before and are not any more are added to `unused`.
  void finish(std::set<std::string>& unused);

 private:
  void release(const std::string& value, size_t consumer);
  void release_inputs(size_t node);
  // The name of the constant that the input of a node is to become, which then reads it.
  std::string name_to_assign(size_t node, size_t input);
  bool is_changed(const std::string& value) const { return changed_.contains(value) || scaled_.contains(value); }
  void set_initializer(onnx::TensorValue tensor);

  onnx::Model& model_;
  onnx::Graph& graph_;
  const onnx::Constants& constants_;
  FreshNames& names_;
  int64_t opset_;
  bool is_body_;
  std::map<std::string, onnx::Uses, std::less<>> uses_;
  std::set<std::string, std::less<>> initializers_;  // of this graph
  std::map<std::string, size_t, std::less<>> declared_ranks_;
  std::map<std::string, Weights, std::less<>> changed_;
  std::map<std::string, ScaledWeights, std::less<>> scaled_;
  std::vector<bool> removed_;
  std::set<std::string, std::less<>> gone_;  // values that nobody makes any more
  std::set<std::string> unused_;
};

}  // namespace evenkeel::tools
