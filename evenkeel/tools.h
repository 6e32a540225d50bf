// Tools for trained models from C++: what the commands inspect, fold, recalibrate, diff, convert and explain do, as calls. They print nothing.
//
//   evenkeel::ModelReport report = evenkeel::inspect_model("resnet20.onnx");
//   for (const evenkeel::NormFinding& finding : report.findings) std::cout << finding.norm << ": " << finding.reason << "\n";
//
//   evenkeel::FoldReport folded = evenkeel::fold_model("resnet20.onnx", "resnet20_folded.onnx");
//   if (!folded.written) std::cout << "differs by " << folded.worst << "\n";
//
// All of them throw std::runtime_error with one sentence: a file that is missing, damaged or of a kind that is not read (a pickle is never
// opened; the sentence has the line of Python that converts it), options that do not fit, data that do not fit the model.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/export.h"

namespace evenkeel {

// What a tool is told about a model file and, where it runs the model, about data. What has no meaning for a call (a standardization without
// data) or lies out of its bounds is refused. Data in files whose images stand channels last, that want resizing or whose examples have weights
// are for the commands (--layout, --resize, --weight).
struct ToolOptions {
  // Of a file that holds weights alone (a PyTorch state dict): a name of the zoo ("resnet20") or a TOML file, and where that leaves it open
  // the shape of an example {channels, height, width} or {features} and the number of classes. "", {}, 0: as the file has it.
  std::string architecture = {};
  std::vector<int64_t> input = {};
  int64_t classes = 0;

  std::string data =
      {};  // as `evenkeel train --data` names it; "": none, or for recalibrate_model what the model was trained on
  std::string split = {};  // "train", "validation" or "test"; "": the tool's own default
  std::string label = {};  // the column of the class in a CSV file; "": as in training
  // Values become (x / scale - mean) / std, one number per channel or one for all. Nothing given: as the model file says. fold_model writes them
  // in front of a network of weights alone, also without data.
  std::optional<double> scale = {};
  std::vector<double> mean = {}, std = {};
  std::string corrupt = {};  // "contrast=0.3", "blur3", ...; "": nothing
  std::optional<uint64_t> seed = {};
  int threads = 0;  // 0: the cores this process may use

  // Is told warnings and notes, one sentence each; may be empty.
  std::function<void(const std::string&)> on_warning = {};
};

// How far one norm's statistics are from others, in its own units: rms over the channels of the shift of the mean in deviations, and of the
// logarithm of the ratio of the variances.
struct NormShift {
  std::string norm;
  double mean_shift = 0, log_var_ratio = 0;
  int64_t channel = 0;  // the one furthest off
};

struct NormReport {
  std::string name;
  int64_t channels = 0;
  double eps = 1e-5;
  bool eps_known = true;  // false: the file does not say, and the usual one is assumed
  std::optional<double>
      new_batch_weight;            // PyTorch's momentum, 1 - Keras' momentum; none: a plain average, or not in the file
  std::string conventions;         // weight and kind of the running variance, in words
  bool training_mode = false;      // it normalizes by the batch whenever the file is run
  std::optional<int64_t> batches;  // num_batches_tracked
  std::vector<double> gamma, beta;         // [channels]; empty: 1 and 0
  std::vector<double> mean, var;           // the running statistics, [channels]; empty: not in the file
  std::vector<std::string> fed_by, feeds;  // "Conv 'conv1'"; empty where the format does not tell
};

struct NormFinding {
  std::string code;      // "EK101"; explain() says more
  std::string severity;  // "info", "warning", "error"
  std::string norm;      // "": the model as a whole
  std::string title, reason, remedy;
  int64_t channels = 0;  // how many are concerned; 0: the norm as such
};

struct ModelReport {
  std::string format;              // "ONNX, opset 9", "evenkeel", "PyTorch state dict", "Keras"
  std::string running_statistics;  // how they were made, in words; "": the file does not say
  std::vector<NormReport> norms;   // in the order of the network
  std::vector<NormFinding> findings;
  std::vector<std::string> notes;  // what was assumed
  // With options.data: from the stored statistics to those of the data, and the shares of right answers by both.
  int64_t examples = 0;
  std::vector<NormShift> shifts;
  std::optional<double> accuracy_stored, accuracy_batch;
};

// Reads the norms of an ONNX, safetensors or Keras (.h5) file or of the folder of a run, and judges them. With options.data it also runs the
// network on them (by default on their test set). Writes nothing.
EK_API ModelReport inspect_model(const std::string& path, const ToolOptions& options = {});

// A tensor of a state dict in memory; `values` has as many floats as `shape` says, and is read only during the call.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const float> values;
};
// The same for tensors by PyTorch's names: "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", and whatever is beside them.
EK_API ModelReport inspect_tensors(const std::vector<NamedTensor>& tensors, const ToolOptions& options = {});

struct FoldOptions : ToolOptions {
  int64_t verify = 8;  // inputs of the proof: of options.data, else seeded random ones; 0: no proof
  // The largest difference that is written, as a share of the largest value; none: 1e-4, or 1e-2 where weights are float16, 5e-2 for bfloat16.
  std::optional<double> tolerance;
  bool write = true;             // false: fold and prove only
  bool force_inference = false;  // norms in training mode are taken to use their stored statistics
};
struct FoldReport {
  struct Folded {
    std::string norm, pattern;      // "conv -> norm"
    std::vector<std::string> into;  // nodes that took it in
  };
  struct Left {
    std::string norm, reason;
  };
  std::vector<Folded> folded;
  std::vector<Left> left;
  bool proved = false;  // both models were run on the same inputs
  double worst =
      0;  // the largest difference of an output or a folded layer, as a share of its largest value; 0 unless proved
  bool written = false;  // false: FoldOptions::write, or `worst` is above the tolerance
};
// Folds the batch norms of `in` (ONNX; a model of evenkeel or a state dict becomes ONNX) into their neighbours where that is exact, and writes
// `out` (.onnx) atomically unless the proof fails.
EK_API FoldReport fold_model(const std::string& in, const std::string& out, const FoldOptions& options = {});

struct RecalibrateOptions : ToolOptions {
  std::string estimate = "population";  // or population_one_pass, mean_of_batches, cumulative, ema
  std::string running_variance = {};    // "biased" or "unbiased"; "": as the model has it
  int64_t batch_size = 0;               // 0: as in training
  int64_t examples = 0;                 // 0: all, else so many, drawn by the seed
  std::string augment = {};             // "crop4,flip"; "": none
  std::string test = {};                // other data to judge by; "": the test set of the data
  double blend = 1;                     // share of the new statistics, above 0
  // Then gamma and beta: "gamma-beta" by labels, "gamma-beta-entropy" without them; "": they stay.
  std::string adapt = {};
  int64_t adapt_epochs = 1;
  double adapt_rate = 1e-3;
  bool undo = false;  // bring back what the file keeps from before
  bool write = true;  // false: say what would change
};
struct RecalibrateReport {
  struct Score {
    double loss = 0, accuracy = 0;
  };
  std::string running_statistics;  // the new ones, in words
  std::vector<NormShift> moved;    // from the old statistics to the new ones
  int64_t examples = 0, passes = 0;
  double seconds = 0;
  std::optional<Score> before, after;  // on the test set; none without labels
  std::vector<std::string> warnings;   // it is judged worse; the preprocessing looks different; ...
  std::string out;                     // what was written; "": nothing
};
// Makes the running statistics of `in` (a model of evenkeel, a state dict, ONNX) anew from data and writes the model, in the format of `in`, to
// `out`; "" stands for NAME.recalibrated.safetensors beside NAME.safetensors. The old statistics are kept in the file, for undo.
EK_API RecalibrateReport recalibrate_model(const std::string& in, const std::string& out,
                                           const RecalibrateOptions& options = {});

struct DiffOptions : ToolOptions {
  int64_t random = 0;  // > 0: run both on so many random inputs (or on options.data) and compare their outputs
};
struct DiffReport {
  struct Norm {
    std::string name, other;  // in a, in b
    int64_t channels = 0;
    double effect = 0;                                         // on the output of the norm, as a share of its deviation
    double gamma = 0, beta = 0, mean = 0, var = 0, scale = 0;  // ||b - a|| / ||a||
    bool eps_differs = false;
  };
  struct Output {
    std::string name;
    double max_abs = 0, mean_abs = 0, largest = 0, relative = 0;
  };
  std::vector<Norm> norms;  // that both have, by falling effect
  std::vector<std::string> only_a, only_b, notes;
  int64_t inputs = 0;  // the outputs were compared on; 0: they were not
  std::vector<Output> outputs;
  std::vector<std::string> outputs_only_a, outputs_only_b;  // and were therefore not compared
};
// What differs between the norms of two models, of the same or of different formats. Writes nothing.
EK_API DiffReport diff_models(const std::string& a, const std::string& b, const DiffOptions& options = {});

struct ConvertOptions {
  std::string architecture = {};  // as in ToolOptions, and the two below
  std::vector<int64_t> input = {};
  int64_t classes = 0;
  std::vector<double> mean = {}, std = {};  // of a state dict: pixels / 255 become (x - mean) / std
  bool training = false;                    // ONNX in training mode
  bool standardization = true;              // false: ONNX that takes standardized inputs
};
struct ConvertReport {
  std::string from, to, architecture;
  size_t tensors = 0;
  std::vector<std::string> left_out;  // what the new kind has no room for, each with the reason
};
// Writes `in` as what the extension of `out` says: .onnx or .safetensors (docs/convert.md).
EK_API ConvertReport convert_model(const std::string& in, const std::string& out, const ConvertOptions& options = {});

struct FindingRule {
  std::string code, severity, title, explanation, remedy;
};
// What a finding means. Throws std::runtime_error naming the closest code where there is none.
EK_API FindingRule explain(const std::string& code);
EK_API std::vector<FindingRule> explain_all();

}  // namespace evenkeel
