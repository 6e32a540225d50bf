// model.safetensors: one file is the whole model. Tensors with PyTorch's state-dict names; architecture (TOML), standardization, class names
// and the norm's conventions in __metadata__ (docs/formats.md).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/data/standardization.h"
#include "evenkeel/engine/parameter_store.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel {

inline constexpr int64_t kModelFormatVersion = 1;

struct Model {
  ModelSpec spec;
  data::Standardization standardization;
  std::optional<data::ValueRange> input_range;  // of the training data; none in files of older versions
  std::vector<std::string> class_names;
  std::vector<std::string> feature_names;       // of a table with a header, in the order of the inputs; else empty
  std::string data_name;                        // the data set it was trained on
  std::map<std::string, std::string> training;  // settings worth keeping: optimizer, epochs, ...
  std::string running_statistics = "ema";       // how the running statistics were made
  // Of passes over data that made them: "data", "examples", "batch_size", "seed", ...; empty: they were made in training.
  std::map<std::string, std::string> statistics_made;
  ParameterStore store;  // parameters and buffers
};

// Assigns initial values of every parameter and buffer of `network` to an empty store: f(seed, parameter name).
void initialize(const Network& network, uint64_t seed, ParameterStore* store);

// The tensors and metadata of a model, without optimizer states.
TensorFile to_tensor_file(const Model& model);
// Throws FormatError: not written by evenkeel, a newer format version (one sentence), a tensor missing, of another shape or too many.
Model model_from(const TensorFile& file, const std::string& name_for_messages);
// A copy, without optimizer states.
Model clone(const Model& model);
void save_model(const std::string& path, const Model& model);  // atomic
Model load_model(const std::string& path);

}  // namespace evenkeel
