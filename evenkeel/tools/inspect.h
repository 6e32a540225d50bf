// All that is to be said about the norms of a model: what `evenkeel inspect` does, before it prints anything.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/lint.h"
#include "evenkeel/tools/lint_data.h"

namespace evenkeel::tools {

struct Inspected {
  std::string path;
  NormTable table;
  std::vector<Finding> findings;
  nlohmann::ordered_json running_statistics;  // an object, of ONNX models and those of evenkeel; else null
  std::string statistics_text;                // likewise
  // With --data:
  int64_t examples = 0;
  std::vector<NormObservation> observations;
  std::optional<Accuracies> accuracies;
};

// Reads asked.model and, where there are data, runs it on them by the stored statistics and by those of the batches. Throws what the readers
// throw; BackendError for data and a model that cannot be run.
Inspected inspect(const Asked& asked);

// Of asked.model, as it stands in its file or in memory.
NormTable read_norm_table(const Asked& asked);

}  // namespace evenkeel::tools
