// Training from C++: what `evenkeel train` does, as a call.
//
//   evenkeel::TrainOptions options;             // the defaults of the command line
//   options.data = "fashion-mnist";
//   options.model = "mlp";
//   evenkeel::TrainReport report = evenkeel::train_network(options);
//   evenkeel::SavedModel model(report.model_path);
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/export.h"

namespace evenkeel {

struct TrainOptions {
  std::string data = "fashion-mnist";
  std::string label;          // the column of the class in a CSV file: a name, or a number from 1; "": the last
  std::string model = "cnn";  // a name of the zoo or a TOML file
  std::string out;            // run folder; "" = a new one below runs/
  int64_t epochs = 3;
  int64_t batch_size = 128;
  std::string optimizer = "adamw";
  double learning_rate = 3e-3;
  std::string schedule = "one-cycle";  // constant, step, cosine, plateau
  double step_factor = 0.1;            // of the schedules step and plateau
  int64_t plateau_patience =
      3;                   // of the schedule plateau: epochs that were no better on the validation set than one before
  double step_epochs = 1;  // of the schedule step: epochs between two steps
  double warmup_epochs = 0;            // epochs in which the rate rises from 0
  double momentum = 0.9;               // of the optimizers momentum and nesterov
  std::optional<double> weight_decay;  // none: 0.01 with adamw, else 0
  double clip_norm = 0;                // > 0: gradients are clipped to this norm over all parameters
  double label_smoothing = 0;          // share of the target spread over all classes
  std::string augment;                 // "crop4,flip"; "": none
  uint64_t seed = 1;
  int threads = 0;        // 0: the cores this process may use
  int64_t max_steps = 0;  // > 0: stop after so many
  double validation = 0;  // share of the training set that is kept out of training, for validation
  std::string keep =
      "last";            // the epoch whose model is saved: last, or by the validation set best-loss or best-accuracy
  int64_t patience = 0;  // > 0: stop after so many epochs that were no better on the validation set than one before
  double min_delta = 0;  // at least 0: an epoch is better where its loss (accuracy, a share) is so by more than this
  bool resume = false;
  std::string from;  // a model file, or the folder of a run, to start from; "": initial values
  // Norm layers by name, with * and ?: not to train gamma and beta, not to update the running statistics, to normalize by these in training;
  // freeze_norm: all three.
  std::vector<std::string> freeze_norm, freeze_affine, freeze_running, use_running;
  std::string running_statistics = "ema";  // cumulative, mean_of_batches, population or population_one_pass
  int64_t ghost_batch = 0;                 // > 0: every so many examples are normalized by their own statistics
  int64_t micro_batch = 0;                 // > 0: at most so many examples in work at a time; the same result
  size_t memory_bytes = 0;                 // > 0: the most that a step may take
  std::string spill;                       // a folder for what does not fit in memory_bytes; "": none
  std::string average_weights;             // "ema=0.999", "swa=2"; "": none
  bool skip_nonfinite = false;             // leave out batches that are not finite instead of stopping
  // Called after every epoch with its number (from 1), the training loss and the test accuracy (NaN without test examples); may be empty.
  std::function<void(int64_t epoch, double train_loss, double test_accuracy)> on_epoch;
  // Called after on_epoch where there is a validation set; may be empty.
  std::function<void(int64_t epoch, double validation_loss, double validation_accuracy)> on_validation;
  // Is told warnings and notes, one sentence each: what is doubtful in the data, batches that were left out, what is resumed; may be empty.
  std::function<void(const std::string& sentence)> on_warning;
  // Becomes true, by a signal or another thread: the step in work is finished, the run saved, and its status is "interrupted". May be null.
  const std::atomic<bool>* stop = nullptr;
};

struct TrainReport {
  std::string
      status;  // "finished"; "interrupted" (TrainOptions::stop); or "not finite": then no model was written, but for that of the best epoch where `keep` asks for it
  std::string message;  // not finite: step and tensor, in one sentence
  double train_loss = 0, images_per_s = 0;
  std::optional<double> test_accuracy;  // none without test examples
  int64_t epochs = 0, steps = 0, parameters = 0;
  std::string model_path, run_dir;
  int64_t best_epoch = 0;  // by the validation set; 0: neither keep, patience nor the schedule plateau was asked for
  bool stopped_early = false;                                  // by patience
  std::optional<double> validation_loss, validation_accuracy;  // of the model; none without validation examples
};

// Trains and writes a run folder with model, checkpoints and log. Throws std::runtime_error with one sentence for anything that the options or
// the files have wrong; prints nothing.
EK_API TrainReport train_network(const TrainOptions& options);

}  // namespace evenkeel
