// What the ranks of a step give each other, counted from the plan before anything runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "evenkeel/graph/plan.h"

namespace evenkeel {

// Of a full batch; all 0 for one rank. Bytes are those of the rank that gives most.
struct Traffic {
  int64_t exchanges = 0;       // points of the step at which ranks wait for each other's moments and sums
  size_t reduction_bytes = 0;  // of moments, gradient sums and the loss
  size_t gradient_bytes = 0;   // of gradients: each once, and in a deterministic plan as nodes of a tree
};
Traffic traffic_of(const Plan& plan);

// What one phase needs of memory for what is given and taken: the results of all ranks, and this rank's own; about.
size_t exchange_bytes(const Plan& plan, const Phase& phase);

}  // namespace evenkeel
