// What `evenkeel inspect` found, and its three forms in print (inspect_print.cc).
#pragma once

#include <nlohmann/json.hpp>

#include <optional>
#include <string>
#include <vector>

#include "evenkeel/cli/terminal.h"
#include "evenkeel/tools/lint_data.h"

namespace evenkeel::cli {

struct Inspected {
  std::string path;
  tools::NormTable table;
  std::vector<tools::Finding> findings;
  nlohmann::ordered_json running_statistics;  // an object, of ONNX models and those of evenkeel; else null
  std::string statistics_text;                // likewise
  // With --data:
  int64_t examples = 0;
  std::vector<tools::NormObservation> observations;
  std::optional<tools::Accuracies> accuracies;
};

nlohmann::ordered_json inspect_json(const Inspected& inspected);
std::string inspect_csv(const Inspected& inspected);
// verbose: a line for every finding, also where many norms have the same of severity info.
std::string inspect_text(const Inspected& inspected, const Terminal& terminal, bool verbose);

// Text of a file for a terminal: without control characters, and no longer than `most` columns (the end is kept).
std::string shown(const std::string& text, size_t most);

}  // namespace evenkeel::cli
