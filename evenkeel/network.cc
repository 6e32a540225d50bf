#include "evenkeel/network.h"

#include <limits>

#include "evenkeel/tools/asked.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

TrainReport train_network(const TrainOptions& options) {
  TrainSettings settings;
  settings.data = options.data;
  settings.load.label_column = options.label;
  settings.model = options.model;
  settings.out = options.out;
  settings.epochs = options.epochs;
  settings.batch_size = options.batch_size;
  settings.optimizer.kind = optimizer_from_name(options.optimizer);
  settings.optimizer.weight_decay = options.weight_decay.value_or(usual_weight_decay(settings.optimizer.kind));
  settings.optimizer.momentum = options.momentum;
  settings.optimizer.clip_norm = options.clip_norm;
  if (options.label_smoothing != 0) settings.label_smoothing = options.label_smoothing;
  settings.augment = data::parse_augment(options.augment);
  settings.learning_rate = options.learning_rate;
  settings.schedule = schedule_from_name(options.schedule);
  settings.step_factor = options.step_factor;
  settings.step_epochs = options.step_epochs;
  settings.warmup_epochs = options.warmup_epochs;
  settings.plateau_patience = options.plateau_patience;
  settings.seed = options.seed;
  settings.threads = options.threads;
  settings.max_steps = options.max_steps;
  settings.load.validation_fraction = options.validation;
  settings.keep = keep_from_name(options.keep);
  settings.patience = options.patience;
  settings.min_delta = options.min_delta;
  settings.resume = options.resume;
  if (!options.from.empty()) settings.from = tools::model_path_of(options.from);
  settings.norm_switches = {options.freeze_norm, options.freeze_affine, options.freeze_running, options.use_running};
  settings.running_statistics = running_statistics_from_name(options.running_statistics);
  if (options.ghost_batch != 0) settings.ghost_batch = options.ghost_batch;
  settings.micro_batch = options.micro_batch;
  settings.memory_bytes = options.memory_bytes;
  if (options.memory_bytes > 0 || options.micro_batch > 0) settings.record_layers = 0;  // as the command line has it
  settings.spill = options.spill;
  settings.average = parse_averaging(options.average_weights);
  if (options.skip_nonfinite) settings.on_nonfinite = OnNonfinite::kSkip;
  TrainObserver observer;
  observer.stop = options.stop;
  observer.note = options.on_warning;
  observer.epoch = [&](const EpochSummary& s) {
    if (options.on_epoch)
      options.on_epoch(s.epoch, s.train_loss, s.test_accuracy.value_or(std::numeric_limits<double>::quiet_NaN()));
    if (options.on_validation && s.validation_loss && s.validation_accuracy)
      options.on_validation(s.epoch, *s.validation_loss, *s.validation_accuracy);
  };
  const TrainResult result = train(settings, observer);
  return {
      result.status,     result.message,       result.train_loss,      result.images_per_s,       result.test_accuracy,
      result.epochs,     result.steps,         result.parameters,      result.model_path,         result.run_dir,
      result.best_epoch, result.stopped_early, result.validation_loss, result.validation_accuracy};
}

}  // namespace evenkeel
