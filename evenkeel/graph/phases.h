// Cuts a step at its reductions over the batch: phases, each of which walks the batch tile by tile, and the values that a later phase makes anew
// instead of reading them.
#pragma once

#include <cstdint>
#include <vector>

#include "evenkeel/graph/graph.h"

namespace evenkeel {

// How a node meets the batch.
enum class Walk {
  kOnce,    // reads no example: statistics, sums, parameters
  kTile,    // example by example: may take any tile of the batch by itself
  kReduce,  // tile by tile, then a fold that needs all of them: what it makes is there after the phase
  kWhole    // needs the whole batch at once: runs after the tiles of its phase
};

// Partial results of a weight gradient: a tile adds to that of its group, groups are folded in a binary tree. At most so many, whatever
// the threads (the summation contract); 0 where the weight is so large, and the work on it so small, that a node of its own over
// the whole batch (Walk::kWhole) is faster than a sum of partials for every block.
int64_t gradient_groups(const Shape& dy, int64_t weight_elements);

Walk walk_of(const Graph& graph, const Node& node);

// One node list each, in the order in which they run; indices into Graph::nodes.
struct PhaseNodes {
  std::vector<int32_t> before, tiles, after;
};

// What a plan does not keep from one phase to another but makes again. Never a reason for another result.
enum class Recompute {
  kNothing,
  kCheap,  // element-wise maps of what is kept anyway, and what is larger than all it is made from
  kAll     // pooling and dropout, too: less memory, more time
};

struct PhasedGraph {
  Graph graph;  // with a copy of every node that runs in a second phase, too
  std::vector<PhaseNodes> phases;
  std::vector<bool>
      kept;  // per value: batched, and read in another phase or stage than the one that makes it, or by the caller
};

PhasedGraph cut_into_phases(Graph graph, Recompute recompute);

}  // namespace evenkeel
