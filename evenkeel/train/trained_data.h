// Data read as those that a model was trained on: `--from`, and the tools that try a model.
#pragma once

#include <string>

#include "evenkeel/data/dataset.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel {

// What the model was trained on, as `--data` names it; "" where it does not say.
std::string trained_on(const Model& model);

// Fills in of `options` what is left open there: the names of the features, and the columns of label and weight: the same ones where `spec` is
// what the model was trained on, else those that the file has (LoadOptions::trained_label). Returns whether it is the same data.
bool read_as_trained(const Model& model, const std::string& spec, data::LoadOptions& options);

}  // namespace evenkeel
