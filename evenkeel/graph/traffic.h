// What a rank gives to the others in a step of a plan that several ranks share: counted from the graph, before anything runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "evenkeel/graph/plan.h"

namespace evenkeel {

struct Traffic {
  int64_t exchanges = 0;  // points of the step at which ranks wait for each other's moments and sums
  size_t reduction_bytes =
      0;  // of moments, gradient sums and the loss, given by rank 0, which has no less than the others
  size_t gradient_bytes = 0;  // of gradients, given by each rank: once, and in a deterministic plan as nodes of a tree
};

// Of a full batch. All 0 for one rank.
Traffic traffic_of(const Plan& plan);

}  // namespace evenkeel
