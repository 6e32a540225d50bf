// Norm + residual + activation in one node: each saves a pass over memory (docs/architecture.md).
#include <vector>

#include "evenkeel/graph/builder.h"

namespace evenkeel {
namespace {

constexpr size_t kResidualInput = 4;  // of Normalize

// How many nodes read each value; named values count as read by the caller.
std::vector<int> reader_counts(const Graph& graph) {
  std::vector<int> counts(graph.values.size(), 0);
  for (const Node& node : graph.nodes) {
    for (const ValueId id : node.inputs) {
      if (id != kNoValue) ++counts[static_cast<size_t>(id)];
    }
  }
  for (const auto& [name, id] : graph.named) ++counts[static_cast<size_t>(id)];
  return counts;
}

}  // namespace

Graph fuse_normalize(const Graph& graph) {
  const std::vector<int> readers = reader_counts(graph);
  // For every value: the index (in the new graph) of the Normalize node that made it and may still grow, or -1.
  std::vector<int> open_normalize(graph.values.size(), -1);
  Graph fused;
  fused.values = graph.values;
  fused.named = graph.named;
  const auto growable = [&](ValueId id) {
    return readers[static_cast<size_t>(id)] == 1 ? open_normalize[static_cast<size_t>(id)] : -1;
  };
  // Moves a Normalize to the end of the list, with a new output: its other inputs are all there by then.
  const auto regrow = [&](int index, ValueId output) -> Node& {
    Node moved = fused.nodes[static_cast<size_t>(index)];
    fused.nodes.erase(fused.nodes.begin() + index);
    for (int& open : open_normalize) {
      if (open > index) --open;
    }
    moved.outputs = {output};
    fused.nodes.push_back(std::move(moved));
    open_normalize[static_cast<size_t>(output)] = static_cast<int>(fused.nodes.size()) - 1;
    return fused.nodes.back();
  };
  for (const Node& node : graph.nodes) {
    if (std::holds_alternative<Add>(node.op)) {
      // A residual block adds (body, shortcut): the body, which ends in a norm, is looked at first.
      bool done = false;
      for (const size_t side : {size_t{0}, size_t{1}}) {
        const int index = growable(node.inputs[side]);
        if (done || index < 0) continue;
        const Node& normalize = fused.nodes[static_cast<size_t>(index)];
        const bool plain = normalize.inputs[kResidualInput] == kNoValue &&
                           std::get<Normalize>(normalize.op).activation.kind == ActivationKind::kIdentity;
        if (!plain) continue;
        regrow(index, node.outputs[0]).inputs[kResidualInput] = node.inputs[1 - side];
        done = true;
      }
      if (done) continue;
    } else if (const auto* activate = std::get_if<Activate>(&node.op)) {
      const int index = growable(node.inputs[0]);
      if (index >= 0 && std::get<Normalize>(fused.nodes[static_cast<size_t>(index)].op).activation.kind ==
                            ActivationKind::kIdentity) {
        std::get<Normalize>(regrow(index, node.outputs[0]).op).activation = activate->activation;
        continue;
      }
    }
    fused.nodes.push_back(node);
    if (std::holds_alternative<Normalize>(node.op)) {
      open_normalize[static_cast<size_t>(node.outputs[0])] = static_cast<int>(fused.nodes.size()) - 1;
    }
  }
  return fused;
}

}  // namespace evenkeel
