// A run that starts from another model's values.
#pragma once

#include <string>

#include "evenkeel/graph/builder.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel {

// Assigns to the tensors of model.store what `from` has under the same name and in the same shape: parameters, but for those of the head where
// the classes are others, and buffers; running statistics as `from` reads them, with the start-up error divided out, while an average over the
// run counts from 0. `path`: of `from`, for messages. Returns a sentence about what starts anew, "" where nothing does. Throws UsageError where
// no tensor fits.
std::string take_values(const Model& from, const std::string& path, const Network& network, Model& model);

}  // namespace evenkeel
