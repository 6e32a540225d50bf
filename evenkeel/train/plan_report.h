// What the plan of a training step looks like, what it needs, and where its time goes: estimated from shapes, and measured.
//
//   PlanReport report = report_plan(zoo_model("cnn", {1, 28, 28}, 10), {.plan = {.batch = 128, .threads = 2}});
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan.h"
#include "evenkeel/graph/precision.h"
#include "evenkeel/graph/traffic.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel {

// Nominal speeds of the estimate. Only their ratio counts, since shares are all that it gives.
inline constexpr double kNominalFlops = 100e9;  // operations a second, of a core, in products
inline constexpr double kNominalBytes = 20e9;   // bytes a second, of a core, that nodes read and write

struct PlanReportOptions {
  PlanOptions plan;
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  Precision precision = Precision::kF32;
  std::string spill_folder;  // for the steps, where the plan spills values
  int64_t steps = 5;  // measured, after two that are not, on random examples; 0, or several ranks: nothing is run
};

struct PhaseReport {
  std::vector<std::string>
      nodes;  // in short, in order: "bn1 relu", "pool1", "conv2", "moments"; "*" behind what is made again
  std::vector<std::string> copies;   // names of the nodes that are made again here
  int64_t tile = 0, unit = 0;        // examples; 0 where nothing is done by tiles
  size_t kept_bytes = 0;             // of the values of examples that this phase makes and the arena keeps
  size_t scratch_bytes = 0;          // of each thread
  double estimated_share = 0;        // of the step
  std::optional<double> measured_s;  // median
};

struct SpilledValue {
  std::string name;
  size_t bytes = 0;
};

struct PlanReport {
  int64_t batch = 0;
  int ranks = 1;
  int64_t rank_batch = 0;   // the largest share of a rank
  Traffic traffic;          // with several ranks
  int64_t micro_batch = 0;  // 0: no bound
  int tile_threads = 1;     // that take tiles at a time
  int threads = 1;
  Precision precision = Precision::kF32;
  std::vector<PhaseReport> phases;
  PlanMemory memory;
  std::vector<SpilledValue> spilled;  // the largest first
  PlanMemory keeping_all;             // of the plan that makes nothing again
  int64_t parameters = 0;
  std::optional<double> begin_s;  // before the first phase: the input, the packed weights
  std::optional<double> step_s;   // medians
};

// Throws UsageError as build_network and make_plan; BackendError where a plan that is run has an op that the backend lacks in bf16.
PlanReport report_plan(const ModelSpec& spec, const PlanReportOptions& options);

// {1, 28, 28} of "1x28x28", {20} of "20". Throws UsageError for anything but one or three extents from 1 to 65536.
Shape parse_shape(const std::string& text);

}  // namespace evenkeel
