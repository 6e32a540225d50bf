// The description of a network: what the zoo makes, what a TOML file says, what a model file carries, and how it becomes graphs.
//
//   ModelSpec spec = zoo_model("cnn", {1, 28, 28}, 10);       // or read_model_toml("net.toml")
//   Network network = build_network(spec, Mode::kTrain);      // graph, parameters, buffers, warnings
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evenkeel/core/activation.h"
#include "evenkeel/graph/builder.h"

namespace evenkeel {

// The words of NormKind, in its order: none, batch, renorm, group, layer, instance.
const std::vector<std::string>& norm_kind_names();
// True where the norm takes a constant of every channel away, so that a bias in front of it changes nothing.
inline bool removes_bias(NormKind kind) { return has_running_statistics(kind) || kind == NormKind::kInstance; }

constexpr int kMostNestedResiduals = 16;  // residual blocks inside residual blocks

enum class NormPlacement { kBefore, kAfter };  // of the activation

// One layer. Which fields count depends on `type`:
//   "conv"      out, kernel, stride, padding, dilation, groups, bias, norm, activation, placement
//   "linear"    out, bias, norm, activation, placement
//   "norm"      a batch norm alone        "activation"  one alone
//   "max_pool"  kernel, stride, padding   "avg_pool"    and count_include_pad
//   "global_avg_pool"   "flatten"         "dropout"     probability
//   "residual"  body, shortcut, activation (after the addition)
struct LayerSpec {
  std::string type;
  // Of the layer and, + ".weight" and so on, of its parameters. "" = made from the type and a number: conv1, fc1, bn1,
  // pool1, block1. Inside a residual it is preceded by the residual's name: block1.conv1.
  std::string name;
  int64_t out = 0;     // 0: the classes, for the last linear or conv layer of the network only
  int64_t kernel = 0;  // 0: 3 for conv, 2 for pools
  int64_t stride = 0;  // 0: 1 for conv, the kernel for pools
  int64_t padding = 0, dilation = 1, groups = 1;
  bool count_include_pad = true;
  double probability = 0.5;
  // Unset: no bias where a norm follows at once (beta replaces it), else a bias. Set to true before a norm: kept, with a warning.
  std::optional<bool> bias;
  // Unset: the network's default, with these exceptions. The last conv or linear layer of the network has neither norm
  // nor activation, the last of a residual body no activation (it comes after the addition). A layer followed by one of
  // type "norm" has neither, a layer followed by one of type "activation" no activation of its own.
  // With ModelSpec::norm = kNone there are no norms at all, whatever a layer says (a warning names it).
  std::optional<NormKind> norm;
  std::optional<Activation> activation;
  std::optional<NormPlacement> placement;
  // "" = made from the name: conv1 -> bn1, fc2 -> bn2 (the next free number where that one is taken), else NAME.bn.
  std::string norm_name;
  bool zero_gamma = false;  // the norm's gamma starts at 0
  // residual: identity | pad (option A: every stride-th pixel, zero channels) | projection (1x1 conv, or linear, + norm)
  std::string shortcut = "identity";
  std::string shortcut_name;    // projection: prefix of its parameters; "" = torchvision's: downsample.0, downsample.1
  std::vector<LayerSpec> body;  // residual

  bool operator==(const LayerSpec&) const = default;
};

// Which norms turn which of the three switches of NormSettings: names of norm layers, where * stands for any text and ? for one character.
struct NormSwitches {
  std::vector<std::string> freeze;          // all three
  std::vector<std::string> freeze_affine;   // gamma and beta stay as they are
  std::vector<std::string> freeze_running;  // the running statistics stay as they are
  std::vector<std::string> use_running;     // training normalizes by the running statistics

  bool operator==(const NormSwitches&) const = default;
};

struct ModelSpec;
// Whether training updates the running statistics of the norm of that name.
bool updates_running(const ModelSpec& spec, const std::string& norm);

struct ModelSpec {
  std::string name;
  Shape input;          // {C, H, W} or {F}
  int64_t classes = 0;  // outputs of the last linear layer
  NormKind norm = NormKind::kBatch;
  NormPlacement placement = NormPlacement::kBefore;
  Activation activation{ActivationKind::kRelu};
  NormSettings norm_options;
  NormSwitches norm_switches;
  Init init = Init::kTorchDefault;
  double init_sigma = 0.01;
  bool zero_gamma = false;             // of the norm that ends the body of a residual block
  std::string loss = "cross_entropy";  // or "mse" against one-hot labels
  double label_smoothing = 0;
  std::vector<LayerSpec> layers;

  bool operator==(const ModelSpec&) const = default;
};

// "cnn", "mlp", "cnn-gap", "lenet", "resnet20", "vgg11", ...
const std::vector<std::string>& zoo_names();
// Throws UsageError with a suggestion for an unknown name, and when the input does not suit the model.
ModelSpec zoo_model(const std::string& name, const Shape& input, int64_t classes);
// What `--model` means: a name of the zoo, else the path of a TOML file. Throws UsageError naming both possibilities and
// the closest name when it is neither.
ModelSpec find_model(const std::string& name_or_path, const Shape& input, int64_t classes);

// The TOML form (docs/guide.md has it with examples). A missing `input` or `classes` is taken from the data: input / classes.
// Throws UsageError naming line and key: an unknown key or word (with a suggestion), a missing one, a value out of range.
ModelSpec parse_model_toml(const std::string& text, const std::string& name_for_messages, const Shape& input,
                           int64_t classes);
ModelSpec read_model_toml(const std::string& path, const Shape& input, int64_t classes);
// TOML that parse_model_toml reads back to an equal specification: the architecture in the metadata of a model file.
std::string to_toml(const ModelSpec& spec);

struct Network {
  Graph
      graph;  // named: "x", "logits", "probabilities" (inference), "labels", "loss", "correct" (with_loss), "weights" (with_weights)
  std::vector<ParameterInfo> parameters;
  std::vector<BufferInfo> buffers;
  std::vector<std::string> warnings;  // for the user: a redundant bias, a norm without ...; one sentence each
};
struct BuildOptions {
  bool with_loss = true;      // labels, loss and correct
  bool with_weights = false;  // weights: of examples, in the statistics of the batch and in the loss
  bool entropy = false;       // the loss is the mean entropy of the answers in place of the specification's; no labels
};
// Throws UsageError naming the layer when shapes do not fit, a value is out of range, a type or word is unknown, or the
// network does not end in one output per class.
Network build_network(const ModelSpec& spec, Mode mode, const BuildOptions& options = {});

}  // namespace evenkeel
