#include "evenkeel/cli/tool_models.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/core/error.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel::cli {

onnx::Model load_as_onnx(const std::string& path, const Arguments& arguments) {
  const std::string file = model_path_of(path);
  const ModelKind kind = kind_of_file(file);
  if (kind == ModelKind::kOnnx) return onnx::load(file);
  if (kind != ModelKind::kSafetensors) throw FormatError(not_read(file, kind, "an ONNX file or a model of evenkeel"));
  Arguments of_this = arguments;
  of_this.model = path;
  if (!tools::is_state_dict(read_safetensors(file)))
    of_this.weights = {};  // two models, one of which may need no architecture
  return tools::to_onnx(load_model_of(of_this));
}

namespace {

struct StatedData {
  data::Dataset dataset;
  data::Standardization standardization;
};
StatedData load_stated(const Arguments& arguments) {
  data::LoadOptions options;
  options.seed = arguments.seed.value_or(1);
  options.preprocess = arguments.preprocess;
  options.whole_file = true;
  if (arguments.label) options.label_column = *arguments.label;
  data::Splits splits = data::load(arguments.data, options);
  StatedData stated{std::move(arguments.split == "train"        ? splits.train
                              : arguments.split == "validation" ? splits.validation
                                                                : splits.test),
                    {}};
  data::Dataset& dataset = stated.dataset;
  if (dataset.count == 0)
    throw UsageError(fmt::format("data '{}' has no examples in its {} split", arguments.data, arguments.split));
  if (arguments.preprocess.normalizes()) {
    stated.standardization = data::standardize_as(dataset, arguments.preprocess);
    const std::string doubt = data::doubt_about(arguments.preprocess, dataset);
    if (!doubt.empty()) print_warning(arguments, doubt);
  } else {
    const auto channels = static_cast<size_t>(dataset.example_shape[0]);
    stated.standardization = {std::vector<double>(channels, 0.0), std::vector<double>(channels, 1.0)};
  }
  return stated;
}

}  // namespace

std::vector<float> examples_of(const Arguments& arguments, int64_t n) {
  if (arguments.data.empty()) return {};
  const StatedData stated = load_stated(arguments);
  n = std::min(n, stated.dataset.count);
  const data::BatchReader reader(stated.dataset, stated.standardization);
  std::vector<int64_t> indices(static_cast<size_t>(n));
  std::iota(indices.begin(), indices.end(), 0);
  std::vector<float> values(static_cast<size_t>(n * reader.example_size()));
  reader.read(indices, 0, take_threads(arguments.threads), values.data(), nullptr);
  return values;
}

std::string text_of_ended_training(const std::vector<tools::RemovedOutput>& removed,
                                   const std::vector<std::string>& dropout, bool verbose) {
  constexpr size_t kMost = 8;
  std::vector<std::string> lines;
  for (const tools::RemovedOutput& output : removed) lines.push_back(tools::in_words(output));
  for (const std::string& node : dropout) lines.push_back(fmt::format("dropout '{}' drops nothing any more", node));
  const size_t shown_lines = verbose ? lines.size() : std::min(kMost, lines.size());
  std::string text;
  for (size_t i = 0; i < shown_lines; ++i) text += "  " + shown(lines[i], 200) + "\n";
  if (shown_lines < lines.size())
    text += fmt::format("  ... and {} more of these (--verbose)\n", lines.size() - shown_lines);
  return text;
}

nlohmann::ordered_json json_of(const std::vector<tools::Difference>& differences) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const tools::Difference& d : differences) {
    list.push_back({{"name", d.name},
                    {"max_abs", d.max_abs},
                    {"mean_abs", d.mean_abs},
                    {"largest", d.largest},
                    {"relative", d.relative},
                    {"values", d.count}});
  }
  return list;
}

std::string text_of(const std::vector<tools::Difference>& differences, const char* what, size_t most) {
  std::vector<tools::Difference> sorted = differences;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.relative > b.relative; });
  std::string text =
      fmt::format("{:<40}  {:>10}  {:>10}  {:>10}  {:>10}\n", what, "max error", "mean error", "largest", "relative");
  for (size_t i = 0; i < std::min(most, sorted.size()); ++i) {
    const tools::Difference& d = sorted[i];
    text += fmt::format("{:<40}  {:>10.3g}  {:>10.3g}  {:>10.3g}  {:>10.3g}\n", shown(d.name, 40), d.max_abs,
                        d.mean_abs, d.largest, d.relative);
  }
  if (sorted.size() > most) text += fmt::format("... and {} more that differ less (--verbose)\n", sorted.size() - most);
  return text;
}

}  // namespace evenkeel::cli
