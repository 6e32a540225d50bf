// What a training run is about, before its first step: data, network, the conventions of its inputs.
#pragma once

#include <optional>

#include "evenkeel/data/dataset.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

struct RunInput {
  data::Splits splits;
  Model model;                // everything but its tensors
  std::optional<Model> from;  // TrainSettings::from
};

// Reads the data and the model to start from, and checks them against each other. Throws the errors of the readers, and UsageError naming
// what does not fit.
RunInput load_input(const TrainSettings& settings, int threads);

// What a checkpoint must agree on. The fingerprint of the data: counts, classes, labels and the standardization, which every value has a
// part in.
RunIdentity identity_of(const data::Splits& splits, const Model& model);

}  // namespace evenkeel
