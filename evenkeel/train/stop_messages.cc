#include "evenkeel/train/stop_messages.h"

#include <cmath>

#include <fmt/format.h>

#include "evenkeel/kernels/activation.h"

namespace evenkeel {

std::string message_of_refused_step(const TrainSettings& settings, const TrainState& state, const std::string& tensor) {
  const bool warms = settings.schedule == ScheduleKind::kOneCycle || settings.warmup_epochs > 0;
  if (tensor.starts_with("weights (")) {
    return fmt::format(
        "training stopped at step {} (epoch {}): its batch has no statistics because of its {}; nothing was updated by "
        "that step; multiply all weights by a larger number, take a larger --batch-size, or give --on-nonfinite skip",
        state.step, state.epoch, tensor);
  }
  return fmt::format(
      "training stopped at step {} (epoch {}): {} is not finite; nothing was updated by that step; try a smaller "
      "--learning-rate, --clip-norm 1{}",
      state.step, state.epoch, tensor.empty() ? "a gradient" : tensor, warms ? "" : " or --warmup-epochs 1");
}

std::string message_of_refused_epoch(int64_t epoch) {
  return fmt::format(
      "training stopped after epoch {}: all of its batches were refused because they were not finite; try a "
      "smaller --learning-rate or --clip-norm 1",
      epoch);
}

std::string message_of_outputs(const TrainState& state, std::optional<double> test_loss,
                               std::optional<double> validation_loss) {
  const bool test = std::isfinite(test_loss.value_or(0));
  if (test && std::isfinite(validation_loss.value_or(0))) return "";
  return fmt::format(
      "training stopped after step {} (epoch {}): the weights have grown so large that the loss on the {} set is not "
      "finite; try a smaller --learning-rate or --clip-norm 1",
      state.step, state.epoch, test ? "validation" : "test");
}

std::string message_of_overflow(const TrainState& state, const ParameterStore& store) {
  for (const auto& [name, tensor] : store.tensors()) {
    if (tensor.dtype() != DType::kF32 || kernels::all_finite(tensor.values<float>().data(), tensor.count())) continue;
    return fmt::format(
        "training stopped after step {} (epoch {}): its update made {} overflow; try a smaller --learning-rate or "
        "--clip-norm 1",
        state.step, state.epoch, name);
  }
  return "";
}

std::string message_of_statistics(const TrainState& state, const std::string& error) {
  return fmt::format("training stopped after step {} (epoch {}): {}; try a smaller --learning-rate or --clip-norm 1",
                     state.step, state.epoch, error);
}

}  // namespace evenkeel
