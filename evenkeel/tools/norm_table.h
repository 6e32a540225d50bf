// Every batch norm of a model, whatever its format, as one table: what inspect shows, lint judges and diff compares.
//
//   tools::NormTable table = tools::read_norm_table("model.onnx");
//   for (const tools::NormRecord& norm : table.norms) fmt::print("{}: {} channels\n", norm.name, norm.channels);
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/model_io/keras_h5.h"
#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/tools/conventions.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {

struct NormRecord {
  std::string name = {};    // the prefix of its parameters where they have one: the same in every format
  std::string output = {};  // ONNX: the value that it makes; "" elsewhere and in bodies
  int64_t channels = 0;

  double eps = 1e-5;
  bool eps_known = true;  // false: the file does not say, and 1e-5 is assumed (1e-3 in Keras files)
  // None: all batches count alike, or the file does not say (weight_known).
  std::optional<double> new_batch_weight = {};
  bool weight_known = true;
  bool start_removed = false;  // the start values 0 and 1 are divided out of the averages
  RunningVariance variance_kind = RunningVariance::kUnknown;
  std::vector<double> gamma = {}, beta = {}, mean = {},
                      var = {};         // gamma and beta are empty where the norm has none: 1 and 0
  std::optional<int64_t> batches = {};  // num_batches_tracked
  bool training = false;                // it normalizes by the batch whenever the file is run
  bool spatial = true;
  // Why not all of its values are here: "the variance ('x') is computed at run time". What is empty is then not known.
  std::string unreadable = {};
  bool has_statistics = true;             // mean and variance are in the file
  std::vector<std::string> missing = {};  // tensors and inputs that it needs and nothing provides

  // Around it, where the format tells.
  std::vector<std::string> fed_by = {}, feeds = {};  // "Conv 'conv1'", "input 'x'", "output 'y'"
  std::string bias_in_front = {};                    // of the product that feeds it: a name; "" = none, or all zero
  std::vector<double> weight_range = {};  // largest |weight| per output channel of that product; empty = not known
  std::string shares_with = {};           // another norm that normalizes by the same statistics
  std::vector<std::string> streams = {};  // what is added or joined in front of it, when that is two things or more
  std::string misfit = {};                // why its channels are not those of what feeds it
  bool closes_branch = false;             // what it makes is added to something else
  std::string padded_behind = {};         // a Conv that pads what the norm makes with zeros
  std::optional<int64_t> values_per_channel = {};  // where the file fixes the batch and all extents

  // gamma / sqrt(var + eps), beta - mean * scale: what inference computes. Empty where a part is not known.
  std::vector<double> scale() const;
  std::vector<double> shift() const;
  std::string conventions() const {
    return weight_known ? in_words(new_batch_weight, variance_kind) : "not in the file";
  }
};

struct NormTable {
  std::string format = {};  // "ONNX, opset 9", "evenkeel", "PyTorch state dict", "Keras"
  std::vector<NormRecord> norms = {};
  std::vector<std::string> notes = {};  // for the reader: what was assumed
};

NormTable norm_table(const onnx::Model& model);
// What stands around the norms is taken from the model as ONNX.
NormTable norm_table(const Model& model);
// Of bare tensors: prefixes that have running_mean or running_var; with one of them only, the other is missing.
NormTable norm_table_of_state_dict(const TensorFile& file);
NormTable norm_table(const KerasModel& model);

// Of a file of any of these formats, told by its bytes. Throws what the readers throw.
NormTable read_norm_table(const std::string& path);

}  // namespace evenkeel::tools
