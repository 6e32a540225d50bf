// What the settings of a run come to: checked, and joined with the data to the network that is trained.
#pragma once

#include "evenkeel/data/dataset.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

// Throws UsageError naming the first setting that is out of range.
void require_sound(const TrainSettings& settings);

// The network: the model's description for these data, with the overrides of the settings. Throws UsageError when model and data do not fit.
ModelSpec resolve_spec(const TrainSettings& settings, const data::Splits& splits);

}  // namespace evenkeel
