// Training: data, a specification and settings in; a run folder with log, checkpoints and model out.
//
//   TrainSettings settings;                      // the defaults do the main job
//   TrainResult result = train(settings, {});
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/comm/comm.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/precision.h"
#include "evenkeel/train/averaging.h"
#include "evenkeel/train/batches.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/model_spec.h"
#include "evenkeel/train/profile.h"
#include "evenkeel/train/running_statistics.h"
#include "evenkeel/train/schedule.h"

namespace evenkeel {

enum class OnNonfinite { kStop, kSkip };
// Of which epoch the model is: the last one, or the one with the smallest loss or the largest accuracy on the validation set.
enum class Keep { kLast, kBestLoss, kBestAccuracy };
const char* name_of(Keep keep);                // "last", "best-loss", "best-accuracy"
Keep keep_from_name(const std::string& name);  // throws UsageError, naming all

struct TrainSettings {
  std::string data = "fashion-mnist";
  // In place of reading `data`, which is then only their name in messages: called once, before the first step.
  std::function<data::Splits()> make_splits;
  data::LoadOptions load;     // label and weight column, validation fraction; its seed is `seed`
  std::string model = "cnn";  // a name of the zoo or a TOML file
  // A model file to start from: its weights and running statistics in place of initial values, as far as names and shapes agree, and its
  // standardization of the inputs. "": none. `model` may be the same file: its network, too.
  std::string from;
  // Overrides of the specification.
  std::optional<NormKind> norm;
  std::optional<NormPlacement> placement;
  std::optional<Activation> activation;
  std::optional<Init> init;
  std::optional<double> init_sigma;
  std::optional<bool> zero_gamma;
  std::optional<double> label_smoothing;
  std::optional<std::string> loss;
  std::optional<double> eps, new_batch_weight;
  std::optional<bool> biased, bias_corrected;
  std::optional<int64_t> ghost_batch, norm_groups;
  std::optional<double> renorm_r_max, renorm_d_max;
  std::optional<std::array<int64_t, 3>> renorm_schedule;  // RenormScale: hold, d_steps, r_steps
  NormSwitches norm_switches;                             // joined to those of the specification

  int64_t epochs = 3;
  int64_t batch_size = 128;
  OptimizerOptions optimizer{.kind = OptimizerKind::kAdamW, .weight_decay = 1e-2};
  double learning_rate = 3e-3;
  // The population kinds: exponential averages while the run goes on, and passes over the training set at its end.
  RunningStatistics running_statistics = RunningStatistics::kEma;
  Averaging average;  // of the weights; what is evaluated and saved is then the averaged network
  // What a step stores images and their gradients in. Where the processor has no bf16 products: a note, and fp32.
  Precision precision = Precision::kF32;
  ScheduleKind schedule = ScheduleKind::kOneCycle;
  double warmup_epochs = 0;
  double step_epochs = 1;  // schedule step: every so many epochs
  double step_factor = 0.1;
  // Schedule plateau: the rate is multiplied by step_factor after so many epochs in which the validation set was no better than before.
  int64_t plateau_patience = 3;
  uint64_t seed = 1;
  int threads = 0;          // 0: the cores this process may use
  size_t memory_bytes = 0;  // > 0: the most that a training step may take (memory_of)
  int64_t micro_batch = 0;  // > 0: examples that a step has in work at a time, in whole blocks (PlanOptions)
  std::string spill;        // a folder for what memory_bytes has no room for; "": none
  // Several ranks (comm/comm.h): whose moments a norm sees. 0: those of all ranks; k: of k neighbours (1: of its own).
  int64_t norm_sync_group = 0;
  bool deterministic = false;  // weight gradients of the same bits on any number of ranks (PlanOptions)
  double timeout_s = 300;      // that a rank waits for others; 0: for ever
  int64_t max_steps = 0;       // > 0: stop after so many steps in all
  Keep keep = Keep::kLast;
  // > 0: stop after so many epochs in which the validation set's loss (accuracy with Keep::kBestAccuracy) was not better than before.
  int64_t patience = 0;
  double min_delta = 0;  // at least 0: what an epoch has to be better by, in loss or accuracy, to count as better
  int64_t overfit = 0;   // > 0: train on the first so many examples of every split only
  bool dry_run = false;  // one batch of everything; writes nothing
  LastBatch last_batch = LastBatch::kKeep;
  OnNonfinite on_nonfinite = OnNonfinite::kStop;
  data::Augment augment;
  std::string out;            // "": a new numbered folder below runs/
  std::string profile;        // a file for the trace of one step; "": none
  int64_t record_layers = 4;  // looks into the network an epoch, and one before it (LayersRecord); 0: none
  bool resume = false;
  double checkpoint_every_s = 30;
};

// Every option as resolved, by its long name without dashes: for the log, the checkpoint and the check on resume.
std::map<std::string, std::string> settings_map(const TrainSettings& settings);

struct Progress {
  int64_t epoch = 1, epochs = 1;
  int64_t step = 0, steps = 0;  // of the whole run
  int64_t step_in_epoch = 0, steps_per_epoch = 0;
  double loss = 0, accuracy = 0;  // running means of this epoch
  double learning_rate = 0;
  double images_per_s = 0, seconds_left = 0;
};
struct EpochSummary {
  int64_t epoch = 1, epochs = 1;
  double train_loss = 0, train_accuracy = 0;
  std::optional<double> test_loss, test_accuracy, validation_loss, validation_accuracy;
  double images_per_s = 0, seconds = 0;
  int64_t batches = 0, refused_batches = 0;  // refused: not finite, under OnNonfinite::kSkip
};
// What the command line shows; all may be empty. Called from the training thread.
struct TrainObserver {
  std::function<void(const std::string&)> note;   // one sentence: a warning, what is resumed, where the run lies
  std::function<void(const Progress&)> progress;  // after every step
  std::function<void(const EpochSummary&)> epoch;
  const std::atomic<bool>* stop = nullptr;  // true: finish the step, save, return status "interrupted"
};

struct TrainResult {
  std::string status;   // "finished", "interrupted", "not finite"
  std::string message;  // not finite: step and tensor, in one sentence
  int64_t epochs = 0, steps = 0;
  int64_t best_epoch =
      0;  // by the validation set; 0 where none was judged: neither keep, patience nor the schedule plateau
  bool stopped_early = false;  // by patience
  double train_loss = 0,
         train_accuracy = 0;  // of the last epoch; NaN when all of its batches were refused, the accuracy in a dry run
  // Of the last epoch, or of the best where that is kept; none where nothing was evaluated: no such split, or the run ended within an epoch.
  std::optional<double> test_loss, test_accuracy, validation_loss, validation_accuracy;
  double images_per_s = 0;  // of the training steps
  double seconds = 0;
  int64_t parameters = 0;
  int64_t peak_memory_bytes = 0;
  std::optional<StepProfile> profile;  // of the step that was traced
  std::string model_path, run_dir;
};

// Throws the errors of data, model, plan and run folder before the first step. A run that meets a value that is not finite returns
// status "not finite" (exit code 6): the last good checkpoint is kept and no model is written. What goes wrong later, such as a full disk, is
// thrown, after an EndRecord "failed".
//
// With several ranks all call it, with the same settings (but for threads, out and what is shown), and each reads and runs its part of every
// batch. All get the same result, but for their own times and memory. Rank 0 alone calls the functions of its observer and writes files, which
// need be on its machine only; any rank's `stop` stops all. What can fail on one rank only before the first step, and what fails on rank 0
// while it writes, is an AgreedError on all; ranks with other settings, data, network or version are refused in the same way, naming the
// difference. Any other exception leaves train() on its rank alone, and the others throw RankError after settings.timeout_s: who can, ends all
// ranks then (Comm::abort).
TrainResult train(const TrainSettings& settings, const TrainObserver& observer);  // world()
TrainResult train(const TrainSettings& settings, const TrainObserver& observer, Comm& comm);

// Peak resident memory of this process.
int64_t peak_memory_bytes();

}  // namespace evenkeel
