// A model file folded into another one: what `evenkeel fold` does, before it prints anything.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/fold.h"
#include "evenkeel/tools/verify.h"

namespace evenkeel::tools {

struct FoldAsked {
  std::string out;     // an ONNX file
  int64_t verify = 8;  // inputs of the proof; 0: none
  // Of the proof: the largest difference, as a share of the largest value. None: by the type of the weights, usual_tolerance().
  std::optional<double> tolerance = {};
  bool dry_run = false;  // write nothing
  bool force_inference = false;
};

struct FoldedModel {
  onnx::Model model;  // folded
  FoldRecord record;
  std::optional<Comparison> proof;  // of the outputs, and of the layers that took norms in; none with verify = 0
  double tolerance = 0;             // that the proof was held against
  bool good = true;                 // the proof, if there is one, is within the tolerance
  bool written = false;
};

// 1e-4; where weights of products are float16 or bfloat16 some twenty of the roundings that folding them makes: 1e-2 and 5e-2.
double usual_tolerance(const onnx::Model& model);

// Folds asked.model, written as ONNX where it is a model of evenkeel or weights, runs it before and after on the same inputs (of the data, else
// random ones), and writes it to how.out if all is good. Throws UsageError when there is no `out` and no dry run, or it is what is read;
// BackendError when the model cannot be run, so that nothing can be proved; Error with the exit code of "not finite" when it gives no numbers.
FoldedModel fold_model(const Asked& asked, const FoldAsked& how);

}  // namespace evenkeel::tools
