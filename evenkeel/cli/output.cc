#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "evenkeel/cli/commands.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/report/run_report.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel::cli {

nlohmann::ordered_json json_result() { return {{"schema_version", kJsonSchemaVersion}}; }

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print_json(const nlohmann::ordered_json& result) {
  print(result.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

void print_note(const std::string& message) {
  const std::string line = "evenkeel: " + message + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void print_warning(const Arguments& arguments, const std::string& message) {
  if (!arguments.quiet) print_note("warning: " + message);
}

std::string command_line_of(const Arguments& arguments) {
  std::string line = "evenkeel";
  for (const std::string& word : arguments.words) line += " " + report::shell_word(word);
  return line;
}

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

void refuse_to_replace(const std::string& out, const std::string& option, const std::vector<std::string>& inputs) {
  for (const std::string& input : inputs) {
    std::error_code error;
    if (input.empty() || !std::filesystem::equivalent(out, input, error)) continue;
    throw UsageError(
        fmt::format("{} {} would take the place of '{}', which is read; give another name", option, out, input));
  }
}

void refuse_needless_architecture(const Arguments& arguments, const std::vector<std::string>& models) {
  const WeightsArguments& weights = arguments.weights;
  if (weights.architecture.empty() && !weights.input && !weights.classes) return;
  for (const std::string& path : models) {
    if (kind_of_file(path) == ModelKind::kSafetensors && tools::is_state_dict(read_safetensors(path))) return;
  }
  throw UsageError(
      fmt::format("--architecture, --input and --classes are for safetensors files of weights alone, and '{}' has its "
                  "own architecture: leave them out",
                  fmt::join(models, "', '")));
}

Model load_model_of(const std::string& path) { return load_model(model_path_of(path)); }

Model load_model_of(const Arguments& arguments) {
  const WeightsArguments& weights = arguments.weights;
  const std::string path = model_path_of(arguments.model);
  const TensorFile file = read_safetensors(path);
  if (!tools::is_state_dict(file)) {
    if (!weights.architecture.empty() || weights.input || weights.classes) {
      throw UsageError(
          fmt::format("'{}' has its architecture in it; --architecture, --input and --classes are for files of weights "
                      "alone: leave "
                      "them out",
                      path));
    }
    return model_from(file, path);
  }
  if (weights.architecture.empty()) throw UsageError(tools::architecture_wanted(file, path));
  return tools::model_from_state_dict(
      file, path, {.architecture = weights.architecture, .input = weights.input, .classes = weights.classes});
}

std::string class_name(const std::vector<std::string>& names, int64_t index) {
  return index >= 0 && index < static_cast<int64_t>(names.size()) ? names[static_cast<size_t>(index)]
                                                                  : std::to_string(index);
}

}  // namespace evenkeel::cli
