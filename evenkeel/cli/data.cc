// evenkeel data info
#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/core/error.h"
#include "evenkeel/data/dataset.h"

namespace evenkeel::cli {
namespace {

nlohmann::ordered_json json_of(const data::DataInfo& info, const std::vector<std::string>& warnings) {
  nlohmann::ordered_json json = json_result();
  json["data"] = info.name;
  json["example_shape"] = info.example_shape;
  json["dtype"] = name_of(info.dtype);
  json["classes"] = info.class_names;
  json["features"] = info.feature_names;
  for (const auto& [name, split] :
       {std::pair{"train", &info.train}, std::pair{"validation", &info.validation}, std::pair{"test", &info.test}}) {
    json[name] = {{"examples", split->count}, {"per_class", split->per_class}};
  }
  json["standardization"] = {
      {"mean", info.standardization.mean}, {"std", info.standardization.std}, {"constant", info.constant}};
  json["min"] = info.min;
  json["max"] = info.max;
  json["warnings"] = warnings;
  return json;
}

// Names as a line of a table has them.
std::vector<std::string> shown_names(const std::vector<std::string>& names) {
  std::vector<std::string> list;
  for (const std::string& name : names) list.push_back(shown(name, name.size() + 2));
  return list;
}

std::string classes_text(const data::DataInfo& info) {
  size_t width = 5;
  const auto names = shown_names(info.class_names);
  for (const std::string& name : names) width = std::max(width, name.size());
  std::string text = fmt::format("\n{:<{}}{:>10}{:>10}\n", "class", width, "train", "test");
  const auto count_of = [](const data::SplitInfo& split, size_t c) {
    return c < split.per_class.size() ? split.per_class[c] : 0;
  };
  for (size_t c = 0; c < info.class_names.size(); ++c) {
    text += fmt::format("{:<{}}{:>10}{:>10}\n", names[c], width, count_of(info.train, c), count_of(info.test, c));
  }
  return text;
}

std::string inputs_text(const data::DataInfo& info) {
  size_t width = 8;
  const auto names = shown_names(info.feature_names);
  for (const std::string& name : names) width = std::max(width, name.size());
  const bool image = info.example_shape.size() == 3;
  std::string text = fmt::format("\n{:<{}}{:>14}{:>14}\n", image ? "channel" : "feature", width, "mean", "deviation");
  const data::Standardization& s = info.standardization;
  for (size_t i = 0; i < s.mean.size(); ++i) {
    const std::string name = i < names.size() ? names[i] : std::to_string(image ? i : i + 1);
    text += fmt::format("{:<{}}{:>14.6g}{:>14.6g}{}\n", name, width, s.mean[i], info.constant[i] ? 0 : s.std[i],
                        info.constant[i] ? "  constant: standardized by 1" : "");
  }
  return text;
}

}  // namespace

int run_data_info(const Arguments& arguments) {
  data::LoadOptions options;
  options.label_column = arguments.label.value_or("");
  options.weight_column = arguments.weight.value_or("");
  options.preprocess = arguments.preprocess;
  const data::Splits splits = data::load(arguments.data, options);
  for (const std::string& doubt : splits.notes) print_warning(arguments, doubt);
  const data::DataInfo info = data::describe(splits);
  if (arguments.json) {
    print_json(json_of(info, splits.notes));
    return kExitGood;
  }
  print(fmt::format("{}: examples of {} ({}), values {:.6g} to {:.6g}\n", info.name, to_string(info.example_shape),
                    info.dtype == DType::kU8 ? "bytes" : "floats", info.min, info.max));
  print(fmt::format("{} classes, {} examples to train, {}{} to test\n", info.class_names.size(), info.train.count,
                    info.validation.count > 0 ? fmt::format("{} to validate, ", info.validation.count) : "",
                    info.test.count));
  print(classes_text(info) + inputs_text(info));
  return kExitGood;
}

}  // namespace evenkeel::cli
