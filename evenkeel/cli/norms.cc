// What eval, recalibrate and inspect say about the norms of a model.
#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/cli/commands.h"
#include "evenkeel/tools/onnx_metadata.h"
#include "evenkeel/tools/onnx_statistics.h"

namespace evenkeel::cli {

bool has_norm(const Model& model) { return !norm_layers(model.spec).empty(); }

namespace {

nlohmann::ordered_json json_of_stated(const Model& model) {
  const NormOptions& o = model.spec.norm_options;
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
  const tools::StatedStatistics stated = tools::stated_statistics(model);
  Model says;
  says.running_statistics = stated.estimate;
  says.statistics_made = stated.made_from;
  says.spec.norm_options.biased = stated.variance == tools::RunningVariance::kBiased;
  return says;
}

// None where the norms differ.
std::optional<double> new_batch_weight(const std::vector<tools::OnnxNorm>& norms) {
  for (const tools::OnnxNorm& norm : norms) {
    if (norm.new_batch_weight != norms[0].new_batch_weight) return std::nullopt;
  }
  return tools::new_batch_weight_of(tools::Dialect::kOnnx, 1 - norms.at(0).new_batch_weight);
}

}  // namespace

nlohmann::ordered_json json_of_statistics(const Model& model) {
  return has_norm(model) ? json_of_stated(model) : nlohmann::ordered_json();
}

nlohmann::ordered_json json_of_statistics(const onnx::Model& model) {
  const std::vector<tools::OnnxNorm> norms = tools::onnx_norms(model);
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
  const std::optional<double> weight = new_batch_weight(tools::onnx_norms(model));
  if (weight) says.spec.norm_options.new_batch_weight = *weight;
  return statistics_text(says);
}

nlohmann::ordered_json json_of(const std::vector<NormDistance>& distances) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const NormDistance& d : distances) {
    list.push_back({{"name", d.name},
                    {"mean_shift", d.mean_shift},
                    {"log_var_ratio", d.log_var_ratio},
                    {"channel", d.channel},
                    {"channel_mean_shift", d.channel_mean_shift},
                    {"channel_log_var_ratio", d.channel_log_var_ratio}});
  }
  return list;
}

std::string text_of(const std::vector<NormDistance>& distances) {
  size_t width = 4;
  for (const NormDistance& d : distances) width = std::max(width, d.name.size());
  std::string text = fmt::format("{:<{}}  {:>10}  {:>12}   furthest channel (mean, variance)\n", "norm", width,
                                 "mean shift", "ln variance");
  for (const NormDistance& d : distances) {
    text += fmt::format("{:<{}}  {:>10.3f}  {:>12.3f}   {} ({:+.3f}, {:+.3f})\n", d.name, width, d.mean_shift,
                        d.log_var_ratio, d.channel, d.channel_mean_shift, d.channel_log_var_ratio);
  }
  return text;
}

}  // namespace evenkeel::cli
