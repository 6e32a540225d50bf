// Why a run ends with the status "not finite", in one sentence: what was found, where, and what to try. "" where nothing is wrong.
#pragma once

#include <optional>
#include <string>

#include "evenkeel/engine/parameter_store.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

// The step that state.step counts was refused; `tensor`: what Executable::first_nonfinite named, or "".
std::string message_of_refused_step(const TrainSettings& settings, const TrainState& state, const std::string& tensor);
// All batches of an epoch were.
std::string message_of_refused_epoch(int64_t epoch);
// Finite weights give outputs that are not.
std::string message_of_outputs(const TrainState& state, std::optional<double> test_loss,
                               std::optional<double> validation_loss);
// A weight, a running statistic or an optimizer state has overflowed: the guard of a step is in front of its update.
std::string message_of_overflow(const TrainState& state, const ParameterStore& store);
// The weights have grown so large that they have no statistics; `error` names norm and channel.
std::string message_of_statistics(const TrainState& state, const std::string& error);

}  // namespace evenkeel
