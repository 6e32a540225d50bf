#include "evenkeel/tools/onnx_metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "evenkeel/model_io/json_depth.h"

namespace evenkeel::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char *kInput = "evenkeel.input", *kStatistics = "evenkeel.statistics",
                     *kConstants = "evenkeel.constants";
constexpr std::string_view kLeft = ", then (x - mean) / std with mean ", kAndStd = " and std ";

std::string_view words_of(InputUnit unit) {
  switch (unit) {
    case InputUnit::kFeatures:
      break;
    case InputUnit::kUnitPixels:
      return "pixels / 255, channels first";
    case InputUnit::kBytePixels:
      return "pixels from 0 to 255";
  }
  return "features";
}

std::string_view text_in(const onnx::Model& model, const char* key) {
  const auto found = model.metadata.find(key);
  return found == model.metadata.end() ? std::string_view() : std::string_view(found->second);
}

// Discarded where it is absent or no JSON: words of others mean nothing.
Json json_in(const onnx::Model& model, const char* key) {
  const std::string_view text = text_in(model, key);
  require_shallow_json(text, fmt::format("metadata '{}'", key));
  return Json::parse(text, nullptr, false);
}

std::string text_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// "0.5, 0.25"; nothing where that is no list of finite numbers.
std::optional<std::vector<double>> numbers_in(std::string_view text) {
  constexpr std::string_view kComma = ", ";
  std::vector<double> numbers;
  while (true) {
    const size_t end = std::min(text.find(kComma), text.size());
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + end, value);
    if (error != std::errc() || stop != text.data() + end || !std::isfinite(value)) return std::nullopt;
    numbers.push_back(value);
    if (end == text.size()) return numbers;
    text.remove_prefix(end + kComma.size());
  }
}

const char* word_of(RunningVariance variance) { return variance == RunningVariance::kUnbiased ? "unbiased" : "biased"; }

}  // namespace

std::optional<data::ValueRange> InputMeaning::range() const {
  if (unit == InputUnit::kFeatures) return std::nullopt;
  return data::ValueRange{0, unit == InputUnit::kBytePixels ? 255.0 : 1.0};
}

std::string in_words(const InputMeaning& meaning) {
  const data::Standardization& left = meaning.left_to_caller;
  if (left.mean.empty()) return std::string(words_of(meaning.unit));
  return fmt::format("{}{}{}{}{}", words_of(meaning.unit), kLeft, fmt::join(left.mean, ", "), kAndStd,
                     fmt::join(left.std, ", "));
}

std::optional<InputMeaning> input_meaning(const onnx::Model& model) {
  const std::string_view text = text_in(model, kInput);
  for (const InputUnit unit : {InputUnit::kFeatures, InputUnit::kUnitPixels, InputUnit::kBytePixels}) {
    const std::string_view what = words_of(unit);
    if (!text.starts_with(what)) continue;
    std::string_view rest = text.substr(what.size());
    if (rest.empty()) return InputMeaning{.unit = unit};
    if (!rest.starts_with(kLeft)) return std::nullopt;
    rest.remove_prefix(kLeft.size());
    const size_t between = rest.find(kAndStd);
    if (between == rest.npos) return std::nullopt;
    const auto mean = numbers_in(rest.substr(0, between)), std = numbers_in(rest.substr(between + kAndStd.size()));
    if (!mean || !std || mean->size() != std->size()) return std::nullopt;
    if (std::any_of(std->begin(), std->end(), [](double v) { return !(v > 0); })) return std::nullopt;
    return InputMeaning{.unit = unit, .left_to_caller = {*mean, *std}};
  }
  return std::nullopt;
}

void state_input(onnx::Model& model, const InputMeaning& meaning) { model.metadata[kInput] = in_words(meaning); }

bool standardizes_itself(const onnx::Model& model) {
  return input_meaning(model).has_value() && model.graph.initializer(kStandardizationMean) != nullptr;
}

StatedStatistics stated_statistics(const onnx::Model& model) {
  StatedStatistics stated;
  const std::string_view words = text_in(model, kRunningStatistics);
  if (words.find("; ") != words.npos) {
    stated.estimate = words.substr(0, words.find("; "));
    if (words.find(variance_in_words(RunningVariance::kUnbiased)) != words.npos)
      stated.variance = RunningVariance::kUnbiased;
  }
  const Json json = json_in(model, kStatistics);
  if (!json.is_object() || !json.contains("estimate") || !json["estimate"].is_string()) return stated;
  stated.estimate = json["estimate"].get<std::string>();
  stated.variance = json.contains("variance") && json["variance"] == word_of(RunningVariance::kUnbiased)
                        ? RunningVariance::kUnbiased
                        : RunningVariance::kBiased;
  if (!json.contains("made_from") || !json["made_from"].is_object()) return stated;
  for (const auto& [key, value] : json["made_from"].items()) {
    if (value.is_string()) stated.made_from[key] = value.get<std::string>();
  }
  return stated;
}

void state_statistics(onnx::Model& model, const StatedStatistics& statistics) {
  Json json{{"estimate", statistics.estimate}, {"variance", word_of(statistics.variance)}};
  json["made_from"] = statistics.made_from;
  if (statistics.made_from.contains("data"))
    json["made_from"]["data"] = without_folders(statistics.made_from.at("data"));
  json["made_from"].erase("before");  // long, and kept elsewhere
  model.metadata[kStatistics] = text_of(json);
}

void forget_statistics(onnx::Model& model) { model.metadata.erase(kStatistics); }

std::set<std::string> stated_constants(const onnx::Model& model) {
  std::set<std::string> names;
  const Json json = json_in(model, kConstants);
  if (!json.is_array()) return names;
  for (const Json& name : json) {
    if (name.is_string()) names.insert(name.get<std::string>());
  }
  return names;
}

void state_constants(onnx::Model& model, const std::vector<std::string>& names) {
  if (!names.empty()) model.metadata[kConstants] = text_of(Json(names));
}

std::string without_folders(const std::string& data_name) {
  std::string kept;
  for (size_t begin = 0; begin <= data_name.size();) {
    const size_t end = std::min(data_name.find(',', begin), data_name.size());
    std::filesystem::path path(data_name.substr(begin, end - begin));
    if (path.has_parent_path() && !path.has_filename()) path = path.parent_path();  // "a/b/"
    kept += (begin > 0 ? "," : "") + path.filename().string();
    begin = end + 1;
  }
  return kept;
}

}  // namespace evenkeel::tools
