// For tests only: runs a plan on paper. Every node marks the memory of its outputs as its own; a node that reads a value must find all
// of it still there. Knows nothing of lifetimes, so it does not repeat the planner's reasoning.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/graph/plan.h"

namespace evenkeel {

// The first thing wrong with the plan, or "".
inline std::string first_fault_of(const Plan& plan) {
  constexpr size_t kUnit = 64;  // of memory; also the alignment that kernels need
  const Graph& graph = plan.graph;
  std::vector<ValueId> owner((plan.arena_bytes + kUnit - 1) / kUnit, kNoValue);
  const auto in_arena = [&](ValueId id) { return id != kNoValue && graph.value(id).role == Role::kComputed; };
  const auto units = [&](ValueId id, size_t* first, size_t* last) {
    const size_t offset = plan.offset[static_cast<size_t>(id)];
    *first = offset / kUnit;
    *last = (offset + value_bytes(graph.value(id), plan.row_capacity) + kUnit - 1) / kUnit;
  };
  const auto whole = [&](ValueId id) {
    size_t first = 0, last = 0;
    units(id, &first, &last);
    for (size_t unit = first; unit < last; ++unit) {
      if (owner[unit] != id) return false;
    }
    return true;
  };
  for (const Node& node : graph.nodes) {
    for (const ValueId id : node.outputs) {
      if (!in_arena(id)) continue;
      const size_t offset = plan.offset[static_cast<size_t>(id)];
      if (offset == kNotInArena || offset % kUnit != 0)
        return node.name + ": no aligned place for " + graph.value(id).name;
      size_t first = 0, last = 0;
      units(id, &first, &last);
      if (last > owner.size()) return node.name + ": " + graph.value(id).name + " ends outside the arena";
      for (size_t unit = first; unit < last; ++unit) owner[unit] = id;
    }
    // After the outputs: one that lies on an input, or on another output, is a fault too.
    for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
      for (const ValueId id : *ids) {
        if (in_arena(id) && !whole(id)) return node.name + ": " + graph.value(id).name + " was overwritten";
      }
    }
  }
  for (const auto& [name, id] : graph.named) {
    if (in_arena(id) && !whole(id)) return "'" + name + "' was overwritten before the end of the run";
  }
  return "";
}

inline size_t sum_of_value_bytes(const Plan& plan) {
  size_t sum = 0;
  for (size_t id = 0; id < plan.offset.size(); ++id) {
    if (plan.offset[id] != kNotInArena) sum += value_bytes(plan.graph.values[id], plan.row_capacity);
  }
  return sum;
}

}  // namespace evenkeel
