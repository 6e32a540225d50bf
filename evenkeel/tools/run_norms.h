// Runs an ONNX model over labelled examples: the moments of what comes into its norms, and how often its answer is right.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/inference/session.h"

namespace evenkeel::tools {

struct NormRunOptions {
  inference::NormMode norms = inference::NormMode::kAsModel;
  int64_t batch_size = 256;  // where the model leaves it open
  int threads = 0;           // 0: the cores this process may use
};

struct NormRun {
  int64_t examples = 0;                                 // whole batches only: the last, smaller one is left out
  std::map<std::string, std::vector<Moments>> moments;  // by the name of the norm's first output
  // Of the first output, where it has one value per class and the examples have labels.
  std::optional<double> accuracy;
};

// Throws UsageError when the model has not one floating input of the examples' shape, or takes more examples at a time than there are;
// BackendError naming the first operator that cannot be run.
NormRun run_norms(const onnx::Model& model, const data::Dataset& dataset, const data::BatchReader& reader,
                  const NormRunOptions& options);

}  // namespace evenkeel::tools
