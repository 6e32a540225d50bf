#include "evenkeel/tools/statistics_words.h"

#include <optional>
#include <vector>

#include "evenkeel/tools/conventions.h"
#include "evenkeel/tools/onnx_metadata.h"
#include "evenkeel/tools/onnx_statistics.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::tools {

bool has_norm(const Model& model) { return !norm_layers(model.spec).empty(); }

namespace {

nlohmann::ordered_json json_of_stated(const Model& model) {
  const NormSettings& o = model.spec.norm_options;
  nlohmann::ordered_json json{{"estimate", model.running_statistics},
                              {"variance", o.biased ? "biased" : "unbiased"},
                              {"new_batch_weight", o.new_batch_weight},
                              {"bias_corrected", o.bias_corrected}};
  json["made_from"] = nullptr;
  if (!model.statistics_made.empty()) json["made_from"] = model.statistics_made;
  return json;
}

// What an ONNX model says about its statistics, as a model of ours would.
Model stated_by(const onnx::Model& model) {
  const StatedStatistics stated = stated_statistics(model);
  Model says;
  says.running_statistics = stated.estimate;
  says.statistics_made = stated.made_from;
  says.spec.norm_options.biased = stated.variance == RunningVariance::kBiased;
  return says;
}

// None where the norms differ.
std::optional<double> new_batch_weight(const std::vector<OnnxNorm>& norms) {
  for (const OnnxNorm& norm : norms) {
    if (norm.new_batch_weight != norms[0].new_batch_weight) return std::nullopt;
  }
  return new_batch_weight_of(Dialect::kOnnx, 1 - norms.at(0).new_batch_weight);
}

}  // namespace

nlohmann::ordered_json json_of_statistics(const Model& model) {
  return has_norm(model) ? json_of_stated(model) : nlohmann::ordered_json();
}

nlohmann::ordered_json json_of_statistics(const onnx::Model& model) {
  const std::vector<OnnxNorm> norms = onnx_norms(model);
  if (norms.empty()) return {};
  const Model says = stated_by(model);
  nlohmann::ordered_json json = json_of_stated(says);
  if (says.running_statistics.empty()) json["estimate"] = nullptr;
  const std::optional<double> weight = new_batch_weight(norms);
  json["new_batch_weight"] = weight ? nlohmann::ordered_json(*weight) : nlohmann::ordered_json();
  return json;
}

std::string statistics_text(const onnx::Model& model) {
  Model says = stated_by(model);
  if (says.running_statistics.empty()) return "of the file";
  const std::optional<double> weight = new_batch_weight(onnx_norms(model));
  if (weight) says.spec.norm_options.new_batch_weight = *weight;
  return evenkeel::statistics_text(says);
}

}  // namespace evenkeel::tools
