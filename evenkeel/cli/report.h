// The report of runs, written: for `evenkeel report` and for the end of `evenkeel train`.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/cli/arguments.h"

namespace evenkeel::cli {

// Writes what is asked for of the runs: report.html in the folder of a single one unless asked.out names a file. Returns its path. Throws
// UsageError (no such run, a folder without a log, several runs and no name), FormatError (a damaged log), IoError.
std::string write_report(const ReportArguments& asked);

// Event files for TensorBoard in `folder`, made when missing: below it a folder for each run where there are several. Throws as above.
void write_events(const std::vector<std::string>& runs, const std::string& folder);

}  // namespace evenkeel::cli
