// What a tool is asked about, whoever asks (the command line, evenkeel/tools.h, Python): a model, and data to try it on.
//
//   Asked asked;
//   asked.model = "resnet20.safetensors";
//   asked.weights.architecture = "resnet20";
//   Model model = load_model_of(asked);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {

// What a file of weights alone (a state dict) leaves open.
struct WeightsAsked {
  std::string architecture;  // a name of the zoo, or a TOML file; "": the model file has it
  std::optional<Shape> input;
  std::optional<int64_t> classes;
};

struct Asked {
  std::string model;  // the model file, or the folder of a run
  std::shared_ptr<const TensorFile>
      tensors;  // in place of a file: what it would hold; `model` stands for it in messages
  WeightsAsked weights;

  std::string data;                              // "": what the model was trained on, or none
  std::shared_ptr<const data::Splits> examples;  // in place of reading `data`, which is then only their name
  std::optional<std::string> label, weight;      // columns of a CSV file
  std::optional<double> validation;
  std::optional<uint64_t> seed;
  std::string split = "test";
  data::Preprocess preprocess;
  bool layout_stated = false;  // preprocess.layout was said, and is no default
  data::Corrupt corrupt;
  int64_t batch_size = 256;
  int threads = 0;  // 0: the cores this process may use

  // Are told one sentence each; may be empty.
  std::function<void(const std::string&)> on_note, on_warning;

  void note(const std::string& sentence) const {
    if (on_note) on_note(sentence);
  }
  void warn(const std::string& sentence) const {
    if (on_warning) on_warning(sentence);
  }
  bool has_data() const { return examples != nullptr || !data.empty(); }
};

// The file that a path means: the model in it where it is the folder of a run. Throws UsageError where that has none.
std::string model_path_of(const std::string& path);
// The same of asked.model; its name where it is in memory.
std::string model_path_of(const Asked& asked);
// By bytes; of tensors in memory: kSafetensors. Throws as kind_of_file.
ModelKind kind_of(const Asked& asked);
bool is_onnx(const Asked& asked);  // false for the folder of a run
// The tensors of asked.model, which is a safetensors file or in memory.
TensorFile tensors_of(const Asked& asked);

// The model of a file or of the folder of a run.
Model load_model_of(const std::string& path);
// The same for asked.model, which may also hold weights alone, for asked.weights. Throws UsageError that names the option and the models of
// the zoo that fit when it is missing.
Model load_model_of(const Asked& asked);
// Throws UsageError when architecture, input or classes are given and none of these files holds weights alone.
void refuse_needless_architecture(const Asked& asked, const std::vector<std::string>& models);
// Throws UsageError when `out`, which `option` names, is one of the files that are read.
void refuse_to_replace(const std::string& out, const std::string& option, const std::vector<std::string>& inputs);

}  // namespace evenkeel::tools
