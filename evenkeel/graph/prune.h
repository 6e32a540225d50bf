// What is left of a graph when only some of its values are wanted. Graph -> graph.
#pragma once

#include <set>
#include <string>

#include "evenkeel/graph/graph.h"

namespace evenkeel {

// The nodes that the values named in `wanted` need, in their order; updates, losses and all else go. Names of other values but the
// input's are forgotten. Requires that every wanted name is there (EK_ASSERT).
Graph prune(Graph graph, const std::set<std::string>& wanted);

}  // namespace evenkeel
