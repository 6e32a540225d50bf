#include "evenkeel/tools/asked.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel::tools {
namespace {

TensorFile copy_of(const TensorFile& file) {
  TensorFile copy{.metadata = file.metadata, .tensors = {}, .carried = file.carried};
  for (const auto& [name, tensor] : file.tensors) copy.tensors.emplace_back(name, tensor.clone());
  return copy;
}

}  // namespace

std::string model_path_of(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return path;
  const std::filesystem::path inside = std::filesystem::path(path) / "model.safetensors";
  if (!std::filesystem::exists(inside, error)) {
    throw UsageError(fmt::format(
        "the folder '{}' holds no model.safetensors; give a model file or the folder of a run that has ended", path));
  }
  return inside.string();
}

std::string model_path_of(const Asked& asked) { return asked.tensors ? asked.model : model_path_of(asked.model); }

ModelKind kind_of(const Asked& asked) {
  return asked.tensors ? ModelKind::kSafetensors : kind_of_file(model_path_of(asked.model));
}

bool is_onnx(const Asked& asked) {
  std::error_code error;
  if (asked.tensors || std::filesystem::is_directory(asked.model, error)) return false;
  return kind_of_file(asked.model) == ModelKind::kOnnx;
}

TensorFile tensors_of(const Asked& asked) {
  return asked.tensors ? copy_of(*asked.tensors) : read_safetensors(model_path_of(asked.model));
}

Model load_model_of(const std::string& path) { return load_model(model_path_of(path)); }

Model load_model_of(const Asked& asked) {
  const WeightsAsked& weights = asked.weights;
  const std::string path = model_path_of(asked);
  const TensorFile file = tensors_of(asked);
  if (!is_state_dict(file)) {
    if (!weights.architecture.empty() || weights.input || weights.classes) {
      throw UsageError(
          fmt::format("'{}' has its architecture in it; --architecture, --input and --classes are for files of weights "
                      "alone: leave "
                      "them out",
                      path));
    }
    return model_from(file, path);
  }
  if (weights.architecture.empty()) throw UsageError(architecture_wanted(file, path));
  return model_from_state_dict(
      file, path, {.architecture = weights.architecture, .input = weights.input, .classes = weights.classes});
}

void refuse_needless_architecture(const Asked& asked, const std::vector<std::string>& models) {
  const WeightsAsked& weights = asked.weights;
  if (asked.tensors || (weights.architecture.empty() && !weights.input && !weights.classes)) return;
  for (const std::string& path : models) {
    if (kind_of_file(path) == ModelKind::kSafetensors && is_state_dict(read_safetensors(path))) return;
  }
  throw UsageError(
      fmt::format("--architecture, --input and --classes are for safetensors files of weights alone, and '{}' has its "
                  "own architecture: leave them out",
                  fmt::join(models, "', '")));
}

void refuse_to_replace(const std::string& out, const std::string& option, const std::vector<std::string>& inputs) {
  for (const std::string& input : inputs) {
    std::error_code error;
    if (input.empty() || !std::filesystem::equivalent(out, input, error)) continue;
    throw UsageError(
        fmt::format("{} {} would take the place of '{}', which is read; give another name", option, out, input));
  }
}

}  // namespace evenkeel::tools
