// Runs two models on the same inputs and says how far their values are apart: the proof of a fold, and the end of a diff.
//
//   tools::Comparison c = tools::compare(before, after, {.inputs = 8});
//   if (c.worst() > 1e-4) ...
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/inference/session.h"
#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::tools {

// How far the values of b are from those of a, over all inputs.
struct Difference {
  std::string name = {}, other = {};  // in a, in b
  double max_abs = 0, mean_abs = 0;
  double largest = 0;      // |a|
  double relative = 0;     // max_abs / largest; infinite where only one of the two is a number
  int64_t count = 0;       // values compared
  int64_t not_finite = 0;  // of the first model's: there is nothing to compare where both are NaN
};

struct CompareOptions {
  int64_t inputs = 8;  // examples, at least
  uint64_t seed = 1;   // of random inputs: standard normal; whole numbers 0 and 1
  int threads = 0;     // 0: the cores this process may use
  // How the norms of the first model are run.
  inference::NormMode norms = inference::NormMode::kAsModel;
  std::vector<std::string> values = {};  // to be compared beside the outputs; those that one of them lacks are left out
  // Examples for the only input, packed; empty: random ones.
  std::span<const float> examples = {};
};

struct Comparison {
  int64_t inputs = 0;
  std::vector<Difference> outputs, values;
  std::vector<std::string> only_a, only_b;  // outputs that one of the two has alone, and that are not compared
  std::vector<std::string> notes;  // what was matched without a name in common; how many inputs, where not as asked

  double worst() const;         // relative, of the outputs
  double worst_of_all() const;  // relative, of the values too
};

// Inputs and outputs are matched by name, those left over in their order where there are as many and their shapes and types allow it.
// Throws BackendError naming the first operator that cannot be run, UsageError when the two have other inputs or outputs, or the examples
// do not fit.
Comparison compare(const onnx::Model& a, const onnx::Model& b, const CompareOptions& options);

}  // namespace evenkeel::tools
