// Every setting of a training run as text: for the log, the checkpoint, and the comparison on resume.
#include <fmt/format.h>

#include "evenkeel/train/trainer.h"

namespace evenkeel {
namespace {

const char* const kInitNames[] = {"zero", "one", "he", "xavier", "normal", "default"};

template <class T>
void put(std::map<std::string, std::string>& map, const char* name, const std::optional<T>& value) {
  if (value) map[name] = fmt::format("{}", *value);
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

std::map<std::string, std::string> settings_map(const TrainSettings& s) {
  std::map<std::string, std::string> map;
  map["data"] = s.data;
  map["label"] = s.load.label_column;
  map["validation"] = fmt::format("{}", s.load.validation_fraction);
  map["model"] = s.model;
  if (s.norm) map["norm"] = *s.norm == NormKind::kBatch ? "batch" : "none";
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
  map["overfit"] = std::to_string(s.overfit);
  map["last-batch"] = name_of(s.last_batch);
  map["on-nonfinite"] = s.on_nonfinite == OnNonfinite::kStop ? "stop" : "skip";
  map["augment"] = data::to_string(s.augment);
  return map;
}

}  // namespace evenkeel
