#include "evenkeel/graph/prune.h"

#include <algorithm>

#include "evenkeel/core/error.h"

namespace evenkeel {

Graph prune(Graph graph, const std::set<std::string>& wanted) {
  std::vector<bool> needed(graph.values.size(), false);
  for (const std::string& name : wanted) {
    EK_ASSERT(graph.find(name) != kNoValue);
    needed[static_cast<size_t>(graph.find(name))] = true;
  }
  std::vector<Node> kept;
  for (auto node = graph.nodes.rbegin(); node != graph.nodes.rend(); ++node) {
    const bool wants = std::any_of(node->outputs.begin(), node->outputs.end(),
                                   [&](ValueId id) { return id != kNoValue && needed[static_cast<size_t>(id)]; });
    if (!wants) continue;
    for (const ValueId id : node->inputs) {
      if (id != kNoValue) needed[static_cast<size_t>(id)] = true;
    }
    kept.push_back(std::move(*node));
  }
  std::reverse(kept.begin(), kept.end());
  graph.nodes = std::move(kept);
  std::erase_if(graph.named, [&](const auto& entry) {
    return entry.first != "x" && entry.first != "weights" && wanted.count(entry.first) == 0;
  });
  return graph;
}

}  // namespace evenkeel
