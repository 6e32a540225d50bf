// The best epoch of a run by its validation set: which it was, its values kept in a file, and when to wait no longer for a better one.
#pragma once

#include <cstdint>
#include <string>

#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/run_files.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

class BestEpoch {
 public:
  // Keeps references to both.
  BestEpoch(const TrainSettings& settings, RunFiles& files) : settings_(settings), files_(files) {}

  // Throws UsageError where epochs are to be judged and there is nothing to judge them by.
  void require_validation(int64_t examples) const;
  // At the end of an epoch, with what was measured: assigns state.best where it is the best so far, and writes its values. Equal is not better, nor is what is within settings.min_delta.
  // With the schedule plateau assigns state.plateau, with a note where the rate goes down.
  void judge(const EpochSummary& epoch, TrainState& state, const ParameterStore& store);
  // Whether --patience epochs have gone by since the best one.
  bool waited_enough(const TrainState& state, int64_t steps_per_epoch) const;
  // Collective, at the end of a run. True: the store and state.averages are now those of the best epoch. False where they are already, where no
  // epoch was judged or the last is to be kept, and with a note where the file is not there any more.
  bool restore(TrainState& state, ParameterStore& store);
  // "epoch 4 had the smallest validation loss (0.3121)"; requires a best epoch.
  std::string sentence(const TrainState& state) const;

 private:
  bool lowers_rate() const { return settings_.schedule == ScheduleKind::kPlateau; }
  bool asked() const { return settings_.keep != Keep::kLast || settings_.patience > 0 || lowers_rate(); }

  const TrainSettings& settings_;
  RunFiles& files_;
};

}  // namespace evenkeel
