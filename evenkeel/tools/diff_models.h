// Two model files compared: what `evenkeel diff` does, before it prints anything.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/diff.h"
#include "evenkeel/tools/verify.h"

namespace evenkeel::tools {

struct DiffAsked {
  std::string other;                                // the second model file
  std::shared_ptr<const TensorFile> other_tensors;  // in its place
  std::optional<int64_t> random;                    // compare outputs on so many random inputs
  std::optional<double> tolerance;                  // of ModelDiff::within
};

struct ModelDiff {
  NormDiff norms;
  std::optional<Comparison> outputs;  // on the data (256 examples at most) or on random inputs; none without either
  bool within =
      true;  // the tolerance, if there is one: by the outputs where they were compared, else by the norms; those of one model alone are not
};

// Throws UsageError where both data and random inputs are asked for, and what the readers and compare() throw.
ModelDiff diff_models(const Asked& asked, const DiffAsked& how);

}  // namespace evenkeel::tools
