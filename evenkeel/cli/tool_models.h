// What fold and diff print alike: how far values are apart, and what went with the training mode.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "evenkeel/tools/inference_mode.h"
#include "evenkeel/tools/verify.h"

namespace evenkeel::cli {

// A line for each output that went with the training mode, and for each node of dropout; some of them, unless verbose.
std::string text_of_ended_training(const std::vector<tools::RemovedOutput>& removed,
                                   const std::vector<std::string>& dropout, bool verbose);

nlohmann::ordered_json json_of(const std::vector<tools::Difference>& differences);
// A table; at most `most` rows, those that differ the most.
std::string text_of(const std::vector<tools::Difference>& differences, const char* what, size_t most);

}  // namespace evenkeel::cli
