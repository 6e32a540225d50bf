// How the running statistics of a model were made, as far as it says so: for reports.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {

bool has_norm(const Model& model);

// {"estimate", "variance", "new_batch_weight", "bias_corrected", "made_from"}; null where there is no norm.
nlohmann::ordered_json json_of_statistics(const Model& model);
// Of an ONNX model, as far as it says: the same keys, null where it does not.
nlohmann::ordered_json json_of_statistics(const onnx::Model& model);
// In words, as evenkeel::statistics_text of a model of ours; "of the file" where it says nothing.
std::string statistics_text(const onnx::Model& model);

}  // namespace evenkeel::tools
