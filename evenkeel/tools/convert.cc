#include "evenkeel/tools/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/keras_h5.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/tensor_convert.h"
#include "evenkeel/tools/onnx_metadata.h"

namespace evenkeel::tools {
namespace {

namespace fs = std::filesystem;

enum class Target { kOnnx, kSafetensors };

Target target_of(const std::string& out) {
  std::string extension = fs::path(out).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (extension == ".onnx") return Target::kOnnx;
  if (extension == ".safetensors") return Target::kSafetensors;
  throw UsageError(fmt::format("'{}': expected a name that ends in .onnx or .safetensors", out));
}

void require_another_file(const std::string& in, const std::string& out) {
  std::error_code error;
  if (fs::equivalent(in, out, error))
    throw UsageError(
        fmt::format("'{}' would take the place of '{}', which it is made from; give another name", out, in));
}

bool asks_for_weights(const StateDictOptions& o) { return !o.architecture.empty() || o.input || o.classes; }

// Our model, or a state dict in its architecture.
Model network_of(const TensorFile& file, const std::string& in, const StateDictOptions& options) {
  if (is_state_dict(file)) {
    if (options.architecture.empty()) throw UsageError(architecture_wanted(file, in));
    return model_from_state_dict(file, in, options);
  }
  if (asks_for_weights(options)) {
    throw UsageError(
        fmt::format("'{}' has its architecture in it; --architecture, --input and --classes are for files of weights "
                    "alone: leave them "
                    "out",
                    in));
  }
  Model model = model_from(file, in);
  if (!options.mean.empty() || !options.std.empty())
    throw UsageError(fmt::format("'{}' has its standardization in it; leave out --mean and --std", in));
  return model;
}

Conversion from_safetensors(const std::string& in, const std::string& out, Target target,
                            const ConvertOptions& options) {
  const TensorFile file = read_safetensors(in);
  const bool ours = !is_state_dict(file);
  const Model model = network_of(file, in, options.weights);
  Conversion done{.from = ours ? "a model of evenkeel" : "a state dict",
                  .to = {},
                  .architecture = model.spec.name,
                  .tensors = {},
                  .left_out = {}};
  if (target == Target::kOnnx) {
    const onnx::Model network = to_onnx(model, options.onnx);
    done.to = options.onnx.training ? "an ONNX model in training mode" : "an ONNX model";
    done.tensors = network.graph.initializers.size();
    onnx::save(out, network);
    return done;
  }
  done.to = ours ? "a state dict" : "a model of evenkeel";
  const TensorFile result = ours ? to_state_dict(model) : to_tensor_file(model);
  done.tensors = result.tensors.size();
  write_safetensors(out, result);
  return done;
}

bool is_parameter(const onnx::Node& node, const onnx::TensorValue& tensor) {
  using onnx::ElementType;
  static const std::set<std::string> kOperators = {"Conv",
                                                   "ConvTranspose",
                                                   "Gemm",
                                                   "MatMul",
                                                   "BatchNormalization",
                                                   "InstanceNormalization",
                                                   "LayerNormalization",
                                                   "PRelu",
                                                   "Gather",
                                                   "LSTM",
                                                   "GRU",
                                                   "RNN",
                                                   "GroupNormalization",
                                                   "Add",
                                                   "Mul",
                                                   "Sub",
                                                   "Div"};
  const bool floating = tensor.type == ElementType::kFloat || tensor.type == ElementType::kDouble ||
                        tensor.type == ElementType::kFloat16 || tensor.type == ElementType::kBfloat16;
  return floating && !tensor.dims.empty() && node.domain.empty() && kOperators.contains(node.op_type);
}

// Parameters that are no initializers: outputs of Constant nodes, and further names of a tensor, as Identity nodes give them.
std::vector<onnx::TensorValue> further_parameters(const onnx::Graph& graph, std::set<std::string> names) {
  const onnx::Constants constants(graph);
  std::vector<onnx::TensorValue> found;
  for (const onnx::Node& node : graph.nodes) {
    for (const std::string& input : node.inputs) {
      const onnx::TensorValue* tensor = constants.find(input);
      if (tensor == nullptr || !is_parameter(node, *tensor) || !names.insert(input).second) continue;
      found.push_back(*tensor);
      found.back().name = input;
    }
  }
  return found;
}

Conversion from_onnx(const std::string& in, const std::string& out) {
  const onnx::Model model = onnx::load(in);
  Conversion done{.from = "an ONNX model", .to = "a state dict", .architecture = {}, .tensors = {}, .left_out = {}};
  TensorFile result;
  result.metadata["format"] = "pt";
  std::set<std::string> names;
  const std::set<std::string> constants = stated_constants(model);
  const auto add = [&](const onnx::TensorValue& tensor) {
    if (constants.contains(tensor.name)) return;  // of our own export: the architecture has them
    if (!names.insert(tensor.name).second) {
      done.left_out.push_back(fmt::format("'{}': there is one of that name", tensor.name));
    } else if (!add_tensor(tensor, &result)) {
      done.left_out.push_back(fmt::format("'{}': safetensors has no {}", tensor.name, onnx::name_of(tensor.type)));
    }
  };
  for (const onnx::TensorValue& tensor : model.graph.initializers) add(tensor);
  std::set<std::string> known = names;
  known.insert(constants.begin(), constants.end());
  for (const onnx::TensorValue& tensor : further_parameters(model.graph, known)) add(tensor);
  done.tensors = result.tensors.size() + result.carried.size();
  write_safetensors(out, result);
  return done;
}

Tensor tensor_of(const std::vector<float>& values) {
  Tensor tensor(DType::kF32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.values<float>().begin());
  return tensor;
}

Conversion from_keras(const std::string& in, const std::string& out) {
  const KerasModel model = read_keras_h5(in);
  if (model.norms.empty()) throw UsageError(fmt::format("'{}' has no batch norms, and nothing else is read of it", in));
  Conversion done{.from = "a Keras file",
                  .to = "a state dict of its batch norms",
                  .architecture = {},
                  .tensors = {},
                  .left_out = {}};
  TensorFile result;
  result.metadata["format"] = "pt";
  for (const KerasNorm& norm : model.norms) {
    const auto add = [&](const char* part, const std::vector<float>& values) {
      if (!values.empty()) result.tensors.emplace_back(norm.name + part, tensor_of(values));
    };
    add(".weight", norm.gamma);
    add(".bias", norm.beta);
    add(".running_mean", norm.moving_mean);
    add(".running_var", norm.moving_variance);
  }
  done.tensors = result.tensors.size();
  write_safetensors(out, result);
  return done;
}

}  // namespace

Conversion convert(const std::string& in, const std::string& out, const ConvertOptions& options) {
  const Target target = target_of(out);
  const ModelKind kind = kind_of_file(in);
  require_another_file(in, out);
  if (kind == ModelKind::kSafetensors) return from_safetensors(in, out, target, options);
  if (kind != ModelKind::kOnnx && kind != ModelKind::kHdf5)
    throw FormatError(not_read(in, kind, "an ONNX, a safetensors or a Keras file"));
  if (target == Target::kOnnx) {
    throw UsageError(kind == ModelKind::kOnnx
                         ? fmt::format("'{}' is an ONNX model already; `evenkeel fold` writes it without its norms", in)
                         : fmt::format("of a Keras file only the norms are read: '{}' can become .safetensors", in));
  }
  if (asks_for_weights(options.weights))
    throw UsageError("--architecture, --input and --classes are for weights of a state dict; leave them out");
  return kind == ModelKind::kOnnx ? from_onnx(in, out) : from_keras(in, out);
}

}  // namespace evenkeel::tools
