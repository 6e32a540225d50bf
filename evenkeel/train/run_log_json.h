// One line of a run log: a record as a JSON object (docs/formats.md). Internal to run_log.cc.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "evenkeel/train/run_log.h"

namespace evenkeel {

// A line that is no record; parse_log adds where.
struct BadLine {
  std::string why;
};

// Without a newline. Text that is not UTF-8 is mended.
std::string line_of(const LogRecord& record);
// Nothing when it is of a kind this version does not know. Throws BadLine.
std::optional<LogRecord> record_on(std::string_view line);

}  // namespace evenkeel
