// The data that a model is to be tried on, as eval, recalibrate and the like read them: by default what it was trained on, with the same splits.
#pragma once

#include <string>

#include "evenkeel/tools/asked.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {

// A setting that the model was trained with, or "".
std::string setting(const Model& model, const std::string& name);

// --seed, else the seed of the training.
uint64_t seed_of(const Asked& asked, const Model& model);

// What is stated on the command line; the size of images where that says nothing and the model was trained on resized ones.
data::Preprocess preprocess_of(const Asked& asked, const Model& model);

data::Splits copy_of(const data::Splits& splits);

// Whether data without labels will do: what only runs the network does not look at them.
enum class Labels { kNeeded, kOptional };

// The splits of --data, or of what the model was trained on.
data::Splits load_splits(const Asked& asked, const Model& model, Labels labels = Labels::kNeeded);

// A split of them as the model wants it: labels are its classes, values are on its scale. Where --scale, --mean or --std are given, the model
// takes that in place of its own standardization (with a note, once). Throws UsageError when there are no examples, or when classes or scale
// do not fit.
data::Dataset take_split(data::Splits& splits, const std::string& split, const Asked& asked, Model& model);
data::Dataset load_split(const Asked& asked, Model& model, const std::string& split, Labels labels = Labels::kNeeded);

// The standardization that is stated, for `dataset`, in place of the model's own; nothing where none is.
void state_preprocessing(const Asked& asked, data::Dataset& dataset, Model& model);

}  // namespace evenkeel::tools
