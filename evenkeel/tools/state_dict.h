// Weights without an architecture: a safetensors file of a PyTorch state dict, loaded into a declared one.
//
//   Model model = load_state_dict("resnet20.safetensors", {.architecture = "resnet20", .mean = {0.485, 0.456, 0.406},
//                                                          .std = {0.229, 0.224, 0.225}});
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {

struct StateDictOptions {
  std::string architecture;             // a name of the zoo, or the path of a TOML file
  std::optional<Shape> input = {};      // of an example; none: the first usual one whose shapes are those of the file
  std::optional<int64_t> classes = {};  // none: as many as the last layer in the file has
  // Of pixels / 255, which becomes (x - mean) / std: one number per channel, or one for all; empty: 0 and 1.
  std::vector<double> mean = {}, std = {};
  const ModelSpec* spec =
      nullptr;  // the network itself: architecture, which is then its name in messages, input and classes are not looked at
};

// True for weights that carry no architecture of evenkeel's: what needs StateDictOptions.
bool is_state_dict(const TensorFile& file);

// What wrappers of PyTorch put in front of all keys: "module.", "model.", "_orig_mod.", "state_dict."; in any order, several at a time.
const std::vector<std::string>& wrappers();
// How many bytes of them all names begin with; 0 of no names. A name that is nothing else keeps the last.
size_t wrapped_by(const std::vector<std::string>& names);

// The weights in the architecture. Leading wrappers() of the keys are left out where that makes them fit;
// num_batches_tracked may be absent (0); F64, F16 and BF16 become F32. Momentum, eps and the kind of the running variance are those of the
// architecture (a zoo model's: PyTorch's). Throws UsageError for an unknown architecture or a mean or std that does not fit it; FormatError
// with all missing, unexpected and misshapen keys, each with the nearest match.
Model model_from_state_dict(const TensorFile& file, const std::string& name_for_messages,
                            const StateDictOptions& options);
Model load_state_dict(const std::string& path, const StateDictOptions& options);

// Names of the zoo whose keys and shapes are those of the file.
std::vector<std::string> fitting_architectures(const TensorFile& file);
// The sentence for a state dict that came without an architecture: names the option and the fitting models.
std::string architecture_wanted(const TensorFile& file, const std::string& name);

// The tensors of a model without anything of evenkeel's: what PyTorch's load_state_dict(strict=True) takes.
TensorFile to_state_dict(const Model& model);

}  // namespace evenkeel::tools
