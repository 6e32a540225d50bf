#include "evenkeel/graph/precision.h"

#include <algorithm>
#include <map>

namespace evenkeel {
namespace {

// Their images have one type.
bool is_product_or_norm(const Op& op) {
  return is_any<Conv, ConvGradInput, ConvGradWeight, MomentsOf, GhostMoments, ScaleOfExample, Normalize,
                NormGradientSums, NormGradientInput>(op);
}

bool is_image(const Graph& graph, ValueId id) {
  if (id == kNoValue) return false;
  const Value& value = graph.value(id);
  return value.batched && value.element == Element::kF32 && value.shape.size() == 3;
}

void store_images(Graph& graph) {
  std::vector<bool> wanted(graph.values.size(), false), flattened(graph.values.size(), false);
  for (const Node& node : graph.nodes) {
    for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
      for (const ValueId id : *ids) {
        if (!is_image(graph, id)) continue;
        if (is_product_or_norm(node.op)) wanted[static_cast<size_t>(id)] = true;
        if (is_any<Flatten, FlattenGradient>(node.op)) flattened[static_cast<size_t>(id)] = true;
      }
    }
  }
  for (size_t id = 0; id < wanted.size(); ++id) {
    const bool computed = graph.values[id].role == Role::kComputed;
    if (computed && is_image(graph, static_cast<ValueId>(id)) && (wanted[id] || !flattened[id]))
      graph.values[id].element = Element::kBF16;
  }
}

// A Cast before the first convolution or norm that reads an image of fp32.
void convert_inputs(Graph& graph) {
  std::map<ValueId, ValueId> casts;
  std::vector<Node> nodes;
  for (Node& node : graph.nodes) {
    if (is_product_or_norm(node.op)) {
      for (ValueId& id : node.inputs) {
        if (!is_image(graph, id)) continue;
        const auto [found, fresh] = casts.try_emplace(id, kNoValue);
        if (fresh) {
          Value copy = graph.value(id);
          copy.name += " in bf16";
          copy.role = Role::kComputed;
          copy.element = Element::kBF16;
          const std::string name = graph.value(id).name + ".cast";
          found->second = graph.add_value(std::move(copy));
          nodes.push_back({name, Cast{}, {id}, {found->second}});
        }
        id = found->second;
      }
    }
    nodes.push_back(std::move(node));
  }
  graph.nodes = std::move(nodes);
}

}  // namespace

Graph with_precision(Graph graph, Precision precision) {
  if (precision == Precision::kF32) return graph;
  store_images(graph);
  convert_inputs(graph);
  return graph;
}

}  // namespace evenkeel
