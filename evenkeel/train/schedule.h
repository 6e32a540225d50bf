// Learning-rate schedules: a pure function of the step, as PyTorch's schedulers give it (docs/math.md, "Schedules").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace evenkeel {

enum class ScheduleKind { kConstant, kStep, kCosine, kOneCycle, kPlateau };
struct Schedule {
  ScheduleKind kind = ScheduleKind::kConstant;
  double learning_rate = 1e-3;  // the largest
  int64_t total_steps = 1;
  // Step i of the first W = warmup_steps has learning_rate * (i + 1) / (W + 1); the schedule then starts at step W.
  // Without effect on one-cycle, which has its own.
  int64_t warmup_steps = 0;
  int64_t step_every = 1;  // step: multiplied by `factor` every so many steps (given in epochs on the command line)
  double factor = 0.1;
  int64_t reductions = 0;     // plateau: multiplied by `factor` so many times so far
  double final_fraction = 0;  // cosine: where it ends, as a fraction
};
const std::vector<std::string>& schedule_names();          // "constant", "step", "cosine", "one-cycle", "plateau"
ScheduleKind schedule_from_name(const std::string& name);  // throws UsageError with a suggestion
const char* name_of(ScheduleKind kind);

// The learning rate of step `step`, counted from 0. One-cycle: torch.optim.lr_scheduler.OneCycleLR with its defaults
// (30 % rising from 1/25, cosine, down to 1/25/1e4), learning rate only. Cosine: CosineAnnealingLR over total_steps -
// warmup_steps. Step: StepLR. Plateau: ReduceLROnPlateau, whose reductions the caller counts. After the last step the rate stays as it is.
// Requires step >= 0, total_steps >= 1, warmup_steps >= 0, step_every >= 1 (EK_ASSERT).
double learning_rate_at(const Schedule& schedule, int64_t step);

}  // namespace evenkeel
