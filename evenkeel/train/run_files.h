// What a training run shows and leaves: notes to the observer, and the folder with log, checkpoints and model. All of it is rank 0's; the other
// ranks have the same calls, which do nothing there, and hear in agree_on_failure() when rank 0 could not write.
#pragma once

#include <optional>
#include <string>

#include "evenkeel/comm/comm.h"
#include "evenkeel/train/batches.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/run_folder.h"
#include "evenkeel/train/run_log.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

class RunFiles {
 public:
  // Keeps references to all of them.
  RunFiles(const TrainSettings& settings, const TrainObserver& observer, Comm& comm)
      : settings_(settings), observer_(observer), comm_(comm) {}

  // Calls action() on rank 0. With several ranks an error is kept for agree_on_failure(), and what comes after it is left out.
  template <class F>
  void on_root(F&& action);
  bool failed() const { return !failure_.empty(); }
  // Collective. Throws AgreedError on all ranks where an action has failed.
  void agree_on_failure();
  void note(const std::string& text);

  // Collective. Makes the folder, or opens it for a resumed run, whose state and tensors all ranks then have; `name`: of the model, for a new
  // folder's name. Throws what RunFolder and restore_checkpoint do, AgreedError on several ranks.
  void open(const std::string& name, const RunIdentity& identity, const BatchCut& cut, TrainState& state,
            ParameterStore& store);
  const std::string& dir() const { return dir_; }
  const std::string& model_path() const { return model_path_; }

  // Begins the log, or goes on with it.
  void start_log(const RunStart& start);
  void log(const LogRecord& record);
  void sync_log();
  // Before an exception leaves the run. What goes wrong with it is not told.
  void log_failure(const EndRecord& record) noexcept;

  // Requires a finite state. Nothing where the last one is of this step.
  void save_checkpoint(TrainState& state, const ParameterStore& store);
  // The values of state.best.epoch, in a file beside the checkpoints. Those of older ones go with later checkpoints.
  void save_best(const TrainState& state, const ParameterStore& store);
  // Collective. Assigns the store and state.averages from that file, and the rest of the state stays. False, with a warning, where the file cannot
  // be read or is of another epoch than state.best: nothing is assigned then.
  bool load_best(TrainState& state, ParameterStore& store);
  // One is due: --checkpoint-every.
  bool checkpoint_is_due() const;

 private:
  void open_here(const std::string& name, const BatchCut& cut, TrainState& state, ParameterStore& store);
  void resume(const BatchCut& cut, TrainState& state, ParameterStore& store);

  const TrainSettings& settings_;
  const TrainObserver& observer_;
  Comm& comm_;
  std::string failure_;  // until all ranks know
  int failure_code_ = kExitGood;
  RunIdentity identity_;
  std::optional<RunFolder> folder_;
  std::optional<RunLogWriter> log_;
  std::string dir_, model_path_;
  int64_t saved_step_ = -1;  // of the newest checkpoint that this process wrote
  int64_t saved_best_ = 0;   // the best epoch when it was written
  double last_checkpoint_s_ = 0;
};

template <class F>
void RunFiles::on_root(F&& action) {
  if (comm_.rank() != 0 || failed()) return;
  if (comm_.size() == 1) return action();
  try {
    action();
  } catch (const Error& error) {
    failure_ = error.what();
    failure_code_ = error.exit_code();
  } catch (const std::exception& error) {
    failure_ = error.what();
    failure_code_ = kExitSystem;
  }
}

}  // namespace evenkeel
