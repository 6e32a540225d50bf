// What fold and diff share: models as ONNX, whatever their file, examples for them, and how far their values are apart.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "evenkeel/cli/arguments.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/tools/inference_mode.h"
#include "evenkeel/tools/verify.h"

namespace evenkeel::cli {

// An ONNX file; or a model of evenkeel, or weights for --architecture, written as ONNX. Throws FormatError for other kinds of files.
onnx::Model load_as_onnx(const std::string& path, const Arguments& arguments);

// The first n examples of the split of --data that is asked for, packed, as inputs: as stated (--scale, --mean, --std), else pixels / 255 and other
// values as they are. Empty without --data.
std::vector<float> examples_of(const Arguments& arguments, int64_t n);

// A line for each output that went with the training mode, and for each node of dropout; some of them, unless verbose.
std::string text_of_ended_training(const std::vector<tools::RemovedOutput>& removed,
                                   const std::vector<std::string>& dropout, bool verbose);

nlohmann::ordered_json json_of(const std::vector<tools::Difference>& differences);
// A table; at most `most` rows, those that differ the most.
std::string text_of(const std::vector<tools::Difference>& differences, const char* what, size_t most);

}  // namespace evenkeel::cli
