// The patterns of folding, each an exact rewriting of one norm and its neighbour; docs/tools.md has the equations.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/tools/fold_graph.h"

namespace evenkeel::tools {

struct FoldAttempt {
  bool done = false;
  std::string pattern = {};               // "conv -> norm"
  std::vector<std::string> into = {};     // labels of the nodes that took the norm in
  std::vector<std::string> outputs = {};  // of them: values that are the same before and after
  std::string reason = {};                // why not, where it is not done: a clause without a point
};

// Folds the norm into the node that makes its input: a product (with or without an addition of constants behind it), or another norm.
FoldAttempt fold_behind(FoldGraph& graph, size_t norm, const Affine& affine);
// Folds it into all nodes that read its output.
FoldAttempt fold_in_front(FoldGraph& graph, size_t norm, const Affine& affine);

}  // namespace evenkeel::tools
