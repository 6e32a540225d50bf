// What evenkeel says about a network in the metadata of an ONNX file, and reads back: what the input means, how the running statistics were made,
// and which tensors are no parameters. Of files of others nothing is known, and nothing wrong is made of their words.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "evenkeel/data/standardization.h"
#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/tools/conventions.h"

namespace evenkeel::tools {

enum class InputUnit { kFeatures, kUnitPixels, kBytePixels };
struct InputMeaning {
  InputUnit unit = InputUnit::kFeatures;
  // What the caller is to do with the values first; empty: nothing, the network takes them as they are.
  data::Standardization left_to_caller = {};

  // Of the values before that; none for features.
  std::optional<data::ValueRange> range() const;
};
// "pixels / 255, channels first, then (x - mean) / std with mean 0.5 and std 0.25"
std::string in_words(const InputMeaning& meaning);
// Nothing where the file does not say it, or in other words.
std::optional<InputMeaning> input_meaning(const onnx::Model& model);
void state_input(onnx::Model& model, const InputMeaning& meaning);

// The names of the constants in front of the network that standardize its input.
inline constexpr const char *kStandardizationMean = "standardization.mean",
                            *kStandardizationStd = "standardization.std";
bool standardizes_itself(const onnx::Model& model);

struct StatedStatistics {
  std::string estimate = {};                            // "ema", "population", ...; "": the file does not say
  RunningVariance variance = RunningVariance::kBiased;  // ONNX' own where the file does not say
  std::map<std::string, std::string> made_from = {};    // of passes over data: "data", "examples", ...
};
StatedStatistics stated_statistics(const onnx::Model& model);
// Made anew by passes over data, from here on.
void state_statistics(onnx::Model& model, const StatedStatistics& statistics);
// Takes that back.
void forget_statistics(onnx::Model& model);
// "ema; weight of a new batch ...; running variance unbiased (n-1)": how they were made in training.
inline constexpr const char* kRunningStatistics = "evenkeel.running_statistics";

// Initializers that the export needed and no state dict has.
std::set<std::string> stated_constants(const onnx::Model& model);
void state_constants(onnx::Model& model, const std::vector<std::string>& names);

// The name of a data set without the folders it was read from: they are nobody else's business. "a/x.npy,a/y.npy" -> "x.npy,y.npy"
std::string without_folders(const std::string& data_name);

}  // namespace evenkeel::tools
