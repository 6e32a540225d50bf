// A log, sorted by kinds of records: what the parts of a run's report read. It refers to the log.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evenkeel/report/page.h"
#include "evenkeel/report/run_report.h"

namespace evenkeel::report {

struct RunFacts {
  explicit RunFacts(const NamedLog& log);

  std::string name;
  std::vector<const RunStart*> starts;
  std::vector<const StepRecord*> steps;
  std::vector<const EpochRecord*> epochs;
  std::vector<const LayersRecord*> layers;
  std::vector<const CheckpointRecord*> checkpoints;
  const StatisticsRecord* statistics = nullptr;  // the last one of each
  const AnswersRecord* answers = nullptr;
  const EndRecord* end = nullptr;

  const RunStart& start() const;  // the last one; an empty one where there is none
  int64_t last_step() const;
  double training_s() const;  // of the steps; evaluation and checkpoints are not in it
};

// Sections of one run (run_layers.cc): none where the log has no such records.
std::vector<Section> layer_sections(const RunFacts& run);
std::vector<Section> answer_sections(const RunFacts& run);

// Text for tables.
std::string duration_text(double seconds);
std::string percent_text(double share);

}  // namespace evenkeel::report
