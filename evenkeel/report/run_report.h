// What the logs of training runs say, as a page.
//
//   const Page page = page_of({{.name = "cnn-1", .records = read_log("runs/cnn-1/log.jsonl")}});
//
// Any log will do: of a run that goes on, was stopped, failed or was resumed, and one written before there were records of layers.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/report/page.h"
#include "evenkeel/train/run_log.h"

namespace evenkeel::report {

struct NamedLog {
  std::string name;  // as it stands in legends
  std::vector<LogRecord> records;
};

// Several runs: their curves in one chart each, then the layers, answers and mistakes of the first. Requires a run. "" as title: made from
// the runs.
Page page_of(const std::vector<NamedLog>& runs, const std::string& title = "");

// The command that trains such a run again: `evenkeel train` with its settings, and nothing that changes no bit.
std::string command_of(const RunStart& start);

// A word as a shell reads it back.
std::string shell_word(const std::string& word);

}  // namespace evenkeel::report
