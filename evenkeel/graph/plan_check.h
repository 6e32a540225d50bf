// For tests only: runs a plan on paper. Every node marks the memory of its outputs as its own; a node that reads a value must find all
// of it still there. Knows nothing of lifetimes, so it does not repeat the planner's reasoning.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/graph/plan.h"

namespace evenkeel {

// Which value each 64 bytes of a memory belong to.
class PaperMemory {
 public:
  static constexpr size_t kUnit = 64;  // also the alignment that kernels need
  explicit PaperMemory(size_t bytes) : owner_((bytes + kUnit - 1) / kUnit, kNoValue) {}
  // "" or what is wrong.
  std::string take(ValueId id, size_t offset, size_t bytes) {
    if (offset == kNotInArena || offset % kUnit != 0) return "no aligned place";
    if ((offset + bytes + kUnit - 1) / kUnit > owner_.size()) return "ends outside its memory";
    for (size_t unit = offset / kUnit; unit < (offset + bytes + kUnit - 1) / kUnit; ++unit) owner_[unit] = id;
    return "";
  }
  bool holds(ValueId id, size_t offset, size_t bytes) const {
    for (size_t unit = offset / kUnit; unit < (offset + bytes + kUnit - 1) / kUnit; ++unit) {
      if (owner_[unit] != id) return false;
    }
    return true;
  }

 private:
  std::vector<ValueId> owner_;
};

class PaperRun {
 public:
  explicit PaperRun(const Plan& plan) : plan_(plan), arena_(plan.arena_bytes), spill_(plan.spill_bytes) {
    for (size_t i = 0; i < plan.graph.values.size(); ++i) {
      const auto id = static_cast<ValueId>(i);
      if (value(id).role == Role::kInput && plan.in_spill(id)) fault(spill_.take(id, offset(id), bytes(id)));
    }
  }

  // The first thing wrong with the plan, or "".
  std::string first_fault() {
    std::vector<int> runs(plan_.graph.nodes.size(), 0);
    for (const Phase& phase : plan_.phases) {
      for (const std::vector<int32_t>* list : {&phase.before, &phase.tiles, &phase.after}) {
        for (const int32_t node : *list) ++runs[static_cast<size_t>(node)];
      }
      for (const int32_t node : phase.before) step(node, false);
      tiles(phase);
      for (const int32_t node : phase.after) step(node, false);
    }
    for (size_t node = 0; node < runs.size(); ++node) {
      if (runs[node] != 1) fault(plan_.graph.nodes[node].name + " runs " + std::to_string(runs[node]) + " times");
    }
    for (const auto& [name, id] : plan_.graph.named) {
      if (computed(id) && !held(id)) fault("'" + name + "' was overwritten before the end of the run");
    }
    return fault_;
  }

 private:
  void fault(const std::string& text) {
    if (fault_.empty()) fault_ = text;
  }
  const Value& value(ValueId id) const { return plan_.graph.value(id); }
  // Or the input, where it is spilled.
  bool computed(ValueId id) const {
    return id != kNoValue && (value(id).role == Role::kComputed || plan_.in_spill(id));
  }
  PaperMemory& memory(ValueId id) { return plan_.in_spill(id) ? spill_ : arena_; }
  size_t offset(ValueId id) const { return plan_.offset[static_cast<size_t>(id)]; }
  size_t bytes(ValueId id) const {
    const int64_t rows = plan_.scratch_rows[static_cast<size_t>(id)];
    return value_bytes(value(id), rows > 0 ? rows : plan_.row_capacity);
  }
  bool held(ValueId id) const { return (plan_.in_spill(id) ? spill_ : arena_).holds(id, offset(id), bytes(id)); }

  // Inputs are looked at after the outputs, too: an output that lies on an input, or on another output, is a fault.
  void step(int32_t index, bool in_tiles) {
    const Node& node = plan_.graph.nodes[static_cast<size_t>(index)];
    write(node, in_tiles);
    read(node, in_tiles);
  }
  void write(const Node& node, bool in_tiles) {
    for (const ValueId id : node.outputs) {
      if (!computed(id) || (in_tiles && plan_.in_scratch(id))) continue;
      if (plan_.in_scratch(id)) fault(node.name + ": " + value(id).name + " is not made by tiles, but in their memory");
      const std::string wrong = memory(id).take(id, offset(id), bytes(id));
      if (!wrong.empty()) fault(node.name + ": " + value(id).name + ": " + wrong);
    }
  }
  void read(const Node& node, bool in_tiles) {
    for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
      for (const ValueId id : *ids) {
        if (!computed(id) || (in_tiles && plan_.in_scratch(id))) continue;
        if (plan_.in_scratch(id) || !held(id)) fault(node.name + ": " + value(id).name + " was overwritten");
      }
    }
  }

  // Threads are at different tiles: all nodes write before any reads. Within a thread a second tile writes before a block of both is read.
  void tiles(const Phase& phase) {
    for (const int32_t node : phase.tiles) write(plan_.graph.nodes[static_cast<size_t>(node)], true);
    for (const int32_t node : phase.tiles) read(plan_.graph.nodes[static_cast<size_t>(node)], true);
    if (phase.tile < 1 || phase.chunk < phase.tile || phase.chunk % kBlockExamples != 0 ||
        phase.unit % phase.chunk != 0)
      fault("tile " + std::to_string(phase.tile) + ", chunk " + std::to_string(phase.chunk) + ", unit " +
            std::to_string(phase.unit));
    PaperMemory scratch(phase.scratch_bytes);
    for (int round = 0; round < 2; ++round) {
      for (const int32_t index : phase.tiles) {
        const Node& node = plan_.graph.nodes[static_cast<size_t>(index)];
        if (!takes_blocks(node.op)) scratch_step(node, scratch, phase.tile);
      }
    }
    for (const int32_t index : phase.tiles) {
      const Node& node = plan_.graph.nodes[static_cast<size_t>(index)];
      if (takes_blocks(node.op)) scratch_step(node, scratch, phase.chunk);
    }
  }
  void scratch_step(const Node& node, PaperMemory& scratch, int64_t rows) {
    for (const ValueId id : node.outputs) {
      if (!computed(id) || !plan_.in_scratch(id)) continue;
      const std::string wrong = scratch.take(id, offset(id), bytes(id));
      if (!wrong.empty()) fault(node.name + ": " + value(id).name + ": " + wrong);
    }
    for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
      for (const ValueId id : *ids) {
        if (!computed(id) || !plan_.in_scratch(id)) continue;
        if (!scratch.holds(id, offset(id), bytes(id)))
          fault(node.name + ": " + value(id).name + " was overwritten by a tile");
        if (plan_.scratch_rows[static_cast<size_t>(id)] < rows)
          fault(node.name + ": too few rows of " + value(id).name);
      }
    }
  }

  const Plan& plan_;
  PaperMemory arena_, spill_;
  std::string fault_;
};

inline std::string first_fault_of(const Plan& plan) { return PaperRun(plan).first_fault(); }

// Of the values that lie in the arena.
inline size_t sum_of_value_bytes(const Plan& plan) {
  size_t sum = 0;
  for (size_t id = 0; id < plan.offset.size(); ++id) {
    if (plan.in_arena(static_cast<ValueId>(id))) sum += value_bytes(plan.graph.values[id], plan.row_capacity);
  }
  return sum;
}

}  // namespace evenkeel
