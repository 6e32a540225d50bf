// The three forms of what `evenkeel inspect` found (inspect_print.cc).
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "evenkeel/cli/terminal.h"
#include "evenkeel/tools/inspect.h"

namespace evenkeel::cli {

using tools::Inspected;

nlohmann::ordered_json inspect_json(const Inspected& inspected);
std::string inspect_csv(const Inspected& inspected);
// verbose: a line for every finding, also where many norms have the same of severity info.
std::string inspect_text(const Inspected& inspected, const Terminal& terminal, bool verbose);

// Text of a file for a terminal: without control characters, and no longer than `most` columns (the end is kept).
std::string shown(const std::string& text, size_t most);

}  // namespace evenkeel::cli
