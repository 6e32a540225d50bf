// The settings of a training run: checked, resolved into a network, and as text for the log, the checkpoint and the comparison on resume.
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/train/resolve.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {
namespace {

const char* const kInitNames[] = {"zero", "one", "he", "xavier", "normal", "default"};

template <class T>
void put(std::map<std::string, std::string>& map, const char* name, const std::optional<T>& value) {
  if (value) map[name] = fmt::format("{}", *value);
}

void put(std::map<std::string, std::string>& map, const char* name, const std::vector<std::string>& patterns) {
  if (!patterns.empty()) map[name] = fmt::format("{}", fmt::join(patterns, ","));
}

void append(const std::vector<std::string>& more, std::vector<std::string>* patterns) {
  patterns->insert(patterns->end(), more.begin(), more.end());
}

const char* name_of(LastBatch policy) {
  switch (policy) {
    case LastBatch::kKeep:
      return "keep";
    case LastBatch::kMerge:
      return "merge";
    case LastBatch::kDrop:
      return "drop";
    case LastBatch::kRunning:
      return "running";
  }
  return "?";
}

}  // namespace

const char* name_of(Keep keep) {
  return keep == Keep::kLast ? "last" : keep == Keep::kBestLoss ? "best-loss" : "best-accuracy";
}

Keep keep_from_name(const std::string& name) {
  for (const Keep keep : {Keep::kLast, Keep::kBestLoss, Keep::kBestAccuracy}) {
    if (name == name_of(keep)) return keep;
  }
  throw UsageError("keep: found '" + name + "', expected last, best-loss or best-accuracy");
}

std::map<std::string, std::string> settings_map(const TrainSettings& s) {
  std::map<std::string, std::string> map;
  map["data"] = s.data;
  map["label"] = s.load.label_column;
  if (!s.load.weight_column.empty()) map["weight"] = s.load.weight_column;
  map["validation"] = fmt::format("{}", s.load.validation_fraction);
  if (s.load.preprocess.resize) map["resize"] = to_string(*s.load.preprocess.resize);
  if (s.load.preprocess.layout != data::Layout::kChannelsFirst) map["layout"] = "nhwc";
  map["model"] = s.model;
  if (s.norm) map["norm"] = norm_kind_names()[static_cast<size_t>(*s.norm)];
  if (!s.from.empty()) map["from"] = s.from;
  if (s.placement) map["norm-placement"] = *s.placement == NormPlacement::kBefore ? "before" : "after";
  if (s.activation) map["activation"] = fmt::format("{}:{}", name_of(s.activation->kind), s.activation->slope);
  if (s.init) map["init"] = kInitNames[static_cast<size_t>(*s.init)];
  put(map, "init-sigma", s.init_sigma);
  put(map, "zero-gamma", s.zero_gamma);
  put(map, "label-smoothing", s.label_smoothing);
  put(map, "loss", s.loss);
  put(map, "norm-eps", s.eps);
  put(map, "new-batch-weight", s.new_batch_weight);
  if (s.biased) map["running-variance"] = *s.biased ? "biased" : "unbiased";
  put(map, "bias-corrected", s.bias_corrected);
  put(map, "ghost-batch", s.ghost_batch);
  put(map, "norm-groups", s.norm_groups);
  put(map, "renorm-r-max", s.renorm_r_max);
  put(map, "renorm-d-max", s.renorm_d_max);
  if (s.renorm_schedule) map["renorm-schedule"] = fmt::format("{}", fmt::join(*s.renorm_schedule, ","));
  put(map, "freeze-norm", s.norm_switches.freeze);
  put(map, "freeze-affine", s.norm_switches.freeze_affine);
  put(map, "freeze-running", s.norm_switches.freeze_running);
  put(map, "use-running", s.norm_switches.use_running);
  map["epochs"] = std::to_string(s.epochs);
  map["batch-size"] = std::to_string(s.batch_size);
  map["optimizer"] = name_of(s.optimizer.kind);
  map["momentum"] = fmt::format("{}", s.optimizer.momentum);
  map["rmsprop-alpha"] = fmt::format("{}", s.optimizer.alpha);
  map["beta1"] = fmt::format("{}", s.optimizer.beta1);
  map["beta2"] = fmt::format("{}", s.optimizer.beta2);
  map["optimizer-eps"] = fmt::format("{}", s.optimizer.eps);
  map["weight-decay"] = fmt::format("{}", s.optimizer.weight_decay);
  map["decay-norm-and-bias"] = s.optimizer.decay_norm_and_bias ? "true" : "false";
  map["clip-norm"] = fmt::format("{}", s.optimizer.clip_norm);
  map["learning-rate"] = fmt::format("{}", s.learning_rate);
  map["schedule"] = name_of(s.schedule);
  map["warmup-epochs"] = fmt::format("{}", s.warmup_epochs);
  map["step-epochs"] = fmt::format("{}", s.step_epochs);
  map["step-factor"] = fmt::format("{}", s.step_factor);
  map["seed"] = std::to_string(s.seed);
  map["max-steps"] = std::to_string(s.max_steps);
  if (s.memory_bytes > 0) {
    // The bound chooses the tile, and with it the rounding; it counts the memory of every thread.
    map["memory"] = std::to_string(s.memory_bytes);
    map["threads"] = std::to_string(s.threads);
    // They change what has to fit, and so the tile; without a bound they change no bit.
    if (s.micro_batch > 0) map["micro-batch"] = std::to_string(s.micro_batch);
    if (!s.spill.empty()) map["spill"] = "to a folder";
  }
  if (s.precision == Precision::kBF16) map["precision"] = "bf16";
  if (s.running_statistics != RunningStatistics::kEma) map["running-statistics"] = name_of(s.running_statistics);
  if (s.average.any()) map["average-weights"] = to_string(s.average);
  // Absent where they are as without several ranks, so that older runs can be resumed.
  if (s.norm_sync_group > 0) {
    map["norm-sync"] = s.norm_sync_group == 1 ? "local" : fmt::format("group:{}", s.norm_sync_group);
  }
  if (s.deterministic) map["deterministic"] = "true";
  if (s.keep != Keep::kLast) map["keep"] = name_of(s.keep);
  if (s.schedule == ScheduleKind::kPlateau) map["plateau-patience"] = std::to_string(s.plateau_patience);
  if (s.patience > 0) map["patience"] = std::to_string(s.patience);
  if (s.min_delta != 0) map["min-delta"] = fmt::format("{}", s.min_delta);
  map["overfit"] = std::to_string(s.overfit);
  map["last-batch"] = name_of(s.last_batch);
  map["on-nonfinite"] = s.on_nonfinite == OnNonfinite::kStop ? "stop" : "skip";
  map["augment"] = data::to_string(s.augment);
  return map;
}

ModelSpec resolve_spec(const TrainSettings& s, const data::Splits& splits) {
  const Shape& input = splits.train.example_shape;
  const int64_t classes = splits.train.class_count();
  const bool same_network = !s.from.empty() && s.model == s.from;
  ModelSpec spec = same_network ? load_model(s.from).spec : find_model(s.model, input, classes);
  if (same_network) {
    spec.classes = classes;
    // Of the run that made it, not of the network.
    spec.norm_options.cumulative = false;
    spec.norm_options.ghost_batch = 0;
    spec.norm_switches = {};
  }
  if (spec.input != input) {
    throw UsageError("model '" + s.model + "' is made for inputs of " + to_string(spec.input) + ", but data '" +
                     s.data + "' has " + to_string(input));
  }
  if (spec.classes < classes) {
    throw UsageError("model '" + s.model + "' has " + std::to_string(spec.classes) + " classes, but data '" + s.data +
                     "' has " + std::to_string(classes));
  }
  if (s.norm) spec.norm = *s.norm;
  if (s.placement) spec.placement = *s.placement;
  if (s.activation) spec.activation = *s.activation;
  if (s.init) spec.init = *s.init;
  if (s.init_sigma) spec.init_sigma = *s.init_sigma;
  if (s.zero_gamma) spec.zero_gamma = *s.zero_gamma;
  if (s.label_smoothing) spec.label_smoothing = *s.label_smoothing;
  if (s.loss) spec.loss = *s.loss;
  if (s.eps) spec.norm_options.eps = *s.eps;
  if (s.new_batch_weight) spec.norm_options.new_batch_weight = *s.new_batch_weight;
  if (s.biased) spec.norm_options.biased = *s.biased;
  if (s.bias_corrected) spec.norm_options.bias_corrected = *s.bias_corrected;
  if (s.running_statistics == RunningStatistics::kCumulative ||
      s.running_statistics == RunningStatistics::kMeanOfBatches)
    spec.norm_options.cumulative = true;
  // Nothing is left to correct in a plain average, or in statistics that another run has made.
  if (spec.norm_options.cumulative || !s.from.empty()) spec.norm_options.bias_corrected = false;
  if (s.ghost_batch) spec.norm_options.ghost_batch = *s.ghost_batch;
  if (s.norm_groups) spec.norm_options.groups = *s.norm_groups;
  RenormScale& renorm = spec.norm_options.renorm;
  if (s.renorm_r_max) renorm.r_max = *s.renorm_r_max;
  if (s.renorm_d_max) renorm.d_max = *s.renorm_d_max;
  if (s.renorm_schedule) {
    renorm.hold = (*s.renorm_schedule)[0];
    renorm.d_steps = (*s.renorm_schedule)[1];
    renorm.r_steps = (*s.renorm_schedule)[2];
  }
  append(s.norm_switches.freeze, &spec.norm_switches.freeze);
  append(s.norm_switches.freeze_affine, &spec.norm_switches.freeze_affine);
  append(s.norm_switches.freeze_running, &spec.norm_switches.freeze_running);
  append(s.norm_switches.use_running, &spec.norm_switches.use_running);
  return spec;
}

void require_sound_memory(int64_t batch, int64_t micro_batch, const std::string& spill, size_t memory_bytes) {
  if (micro_batch > batch) {
    const int64_t most = batch / kBlockExamples * kBlockExamples;
    throw UsageError(fmt::format("--micro-batch {} is larger than the batch of {} examples; {}", micro_batch, batch,
                                 most > 0 ? fmt::format("use at most {}, or leave it out", most) : "leave it out"));
  }
  if (spill.empty()) return;
  if (memory_bytes == 0) {
    throw UsageError(
        "--spill does nothing without --memory: values go to the disk when a step would take more than that; give "
        "--memory BYTES, or leave out --spill");
  }
  check_folder_is_writable(spill);
}

namespace {

constexpr int64_t kMostEpochs = 1000000;  // steps are counted over all of them

// The numbers of the optimizer and the schedule, each by itself.
void require_sound_numbers(const TrainSettings& s) {
  const auto require = [](const char* name, double value, bool good, const char* expected) {
    if (!good || !std::isfinite(value)) throw UsageError(fmt::format("{} must be {}, found {}", name, expected, value));
  };
  const auto require_fraction = [&](const char* name, double value) {
    require(name, value, value >= 0 && value < 1, "from 0 to below 1");
  };
  const OptimizerOptions& o = s.optimizer;
  require("weight-decay", o.weight_decay, o.weight_decay >= 0, "a number of at least 0");
  require("clip-norm", o.clip_norm, o.clip_norm >= 0, "a number of at least 0");
  require("optimizer-eps", o.eps, o.eps > 0, "a number above 0");
  require_fraction("momentum", o.momentum);
  require_fraction("rmsprop-alpha", o.alpha);
  require_fraction("beta1", o.beta1);
  require_fraction("beta2", o.beta2);
  require("step-factor", s.step_factor, true, "finite");
  require("checkpoint-every", s.checkpoint_every_s, true, "finite");
  require("min-delta", s.min_delta, s.min_delta >= 0, "a number of at least 0");
  for (const auto& [name, count] : {std::pair{"max-steps", s.max_steps}, {"overfit", s.overfit}}) {
    if (count < 0) throw UsageError(fmt::format("{} must be at least 0, which is none; found {}", name, count));
  }
}

}  // namespace

void require_sound(const TrainSettings& s) {
  if (s.epochs < 1 || s.epochs > kMostEpochs)
    throw UsageError(fmt::format("the number of epochs must be from 1 to {}, found {}", kMostEpochs, s.epochs));
  if (s.batch_size < 1) throw UsageError("the batch size must be at least 1, found " + std::to_string(s.batch_size));
  if (!(s.learning_rate > 0) || !std::isfinite(s.learning_rate)) {
    throw UsageError(fmt::format("the learning rate must be positive and finite, found {}", s.learning_rate));
  }
  const bool warms = s.schedule != ScheduleKind::kOneCycle;  // which has a rise of its own
  if (warms && !(s.warmup_epochs >= 0 && s.warmup_epochs <= static_cast<double>(s.epochs))) {
    throw UsageError(
        fmt::format("warmup-epochs must be from 0 to the {} epochs of the run, found {}", s.epochs, s.warmup_epochs));
  }
  if (s.schedule == ScheduleKind::kStep && !(s.step_epochs > 0 && s.step_epochs <= static_cast<double>(kMostEpochs))) {
    throw UsageError(fmt::format("step-epochs must be above 0 and at most {}, found {}", kMostEpochs, s.step_epochs));
  }
  require_sound_numbers(s);
  if (s.average.kind == AveragingKind::kSwa && s.average.first_epoch > s.epochs) {
    throw UsageError(
        fmt::format("the weights would be averaged from epoch {} on, but the run has {}; give a smaller swa=N",
                    s.average.first_epoch, s.epochs));
  }
  if (s.threads < 0 || s.threads > kMostThreads) {
    throw UsageError(fmt::format("threads is {}; expected 0 to {}", s.threads, kMostThreads));
  }
  if (s.schedule == ScheduleKind::kPlateau && !(s.step_factor > 0 && s.step_factor < 1))
    throw UsageError(
        fmt::format("schedule plateau lowers the rate: step-factor must be between 0 and 1, found {}", s.step_factor));
  if (s.plateau_patience < 1)
    throw UsageError(fmt::format("plateau-patience must be at least 1, found {}", s.plateau_patience));
  if (s.patience < 0) throw UsageError(fmt::format("patience must be at least 0, which is none; found {}", s.patience));
  if (s.norm_sync_group < 0) {
    throw UsageError(
        fmt::format("norms see the moments of at least one rank, or of all (0), found {}", s.norm_sync_group));
  }
  if (s.record_layers < 0)
    throw UsageError(fmt::format("record-layers must be at least 0, which is none; found {}", s.record_layers));
  require_sound_memory(s.batch_size, s.micro_batch, s.spill, s.memory_bytes);
}

}  // namespace evenkeel
