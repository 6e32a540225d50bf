// What the settings of a run come to: checked, and joined with the data to the network that is trained.
#pragma once

#include "evenkeel/data/dataset.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

// Throws UsageError naming the first setting that is out of range.
void require_sound(const TrainSettings& settings);

// How a step keeps to its memory: throws UsageError when the micro-batch (0: none) is larger than the batch, or there is a folder to spill to
// (not "") but no bound on the memory, IoError when that folder cannot be written to.
void require_sound_memory(int64_t batch, int64_t micro_batch, const std::string& spill, size_t memory_bytes);

// The network: the model's description for these data, with the overrides of the settings. Throws UsageError when model and data do not fit.
ModelSpec resolve_spec(const TrainSettings& settings, const data::Splits& splits);

}  // namespace evenkeel
