#include "evenkeel/cli/onnx_subject.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/model_data.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/inference_mode.h"
#include "evenkeel/tools/onnx_metadata.h"

namespace evenkeel::cli {

bool is_onnx(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return false;
  return kind_of_file(path) == ModelKind::kOnnx;
}

void warn_of_standardizing_twice(const Arguments& arguments, const onnx::Model& model) {
  const data::Preprocess& stated = arguments.preprocess;
  if ((stated.mean.empty() && stated.std.empty()) || !tools::standardizes_itself(model)) return;
  print_warning(
      arguments,
      "the model standardizes its inputs itself, and with --mean and --std they are standardized twice: leave "
      "them out");
}

OnnxSubject OnnxSubject::load(const Arguments& arguments) {
  refuse_needless_architecture(arguments, {arguments.model});
  OnnxSubject subject{.model = onnx::load(arguments.model), .form = {}, .shell = {}, .ended_dropout = {}};
  const size_t training = tools::norms_in_training(subject.model.graph, subject.model.opset()).size();
  if (training > 0) {
    subject.ended_dropout = tools::end_dropout(subject.model);
    print_warning(
        arguments,
        fmt::format(
            "{} norm{} of the model {} in training mode and would normalize by the batch wherever the "
            "file is run; here the stored statistics are used, and dropout drops nothing (evenkeel explain EK112)",
            training, training == 1 ? "" : "s", training == 1 ? "is" : "are"));
  }
  if (const auto meaning = tools::input_meaning(subject.model)) {
    subject.shell.standardization = meaning->left_to_caller;
    subject.shell.input_range = meaning->range();
  }
  warn_of_standardizing_twice(arguments, subject.model);
  const auto classes = subject.model.metadata.find("evenkeel.classes");
  if (classes == subject.model.metadata.end()) return subject;
  const auto names = nlohmann::json::parse(classes->second, nullptr, false);
  if (!names.is_array()) return subject;  // somebody else's words
  for (const auto& name : names)
    subject.shell.class_names.push_back(name.is_string() ? name.get<std::string>() : name.dump());
  return subject;
}

void OnnxSubject::bind(const Arguments& arguments, const Shape& example, bool any_output) {
  form = tools::classifier_form(model, {.example = example,
                                        .channels_last = arguments.preprocess.layout == data::Layout::kChannelsLast,
                                        .any_output = any_output});
  shell.spec.input = form.example;
  shell.spec.classes = form.classes;
  const data::Standardization& stated = shell.standardization;
  if (!stated.mean.empty() && !arguments.preprocess.normalizes() &&
      (form.example.empty() || std::ssize(stated.mean) != form.example[0])) {
    throw FormatError(
        fmt::format("{}: its metadata say how {} channels are to be standardized, but it takes examples of {}; say it "
                    "by --mean and --std",
                    arguments.model, stated.mean.size(), to_string(form.example)));
  }
  if (form.classes > 0 && static_cast<int64_t>(shell.class_names.size()) != form.classes) shell.class_names.clear();
}

data::Dataset OnnxSubject::take(data::Splits& splits, const std::string& split, const Arguments& arguments) {
  data::Dataset dataset = take_split(splits, split, arguments, shell);
  complete(arguments, dataset);
  return dataset;
}

void OnnxSubject::complete(const Arguments& arguments, const data::Dataset& dataset) {
  const size_t channels = static_cast<size_t>(dataset.example_shape.empty() ? 1 : dataset.example_shape[0]);
  if (shell.standardization.mean.empty())
    shell.standardization = {std::vector<double>(channels, 0), std::vector<double>(channels, 1)};
  const auto classes = static_cast<int64_t>(dataset.class_names.size());
  if (shell.class_names.empty() && classes > 0 && classes != form.classes && form.classes > 0) {
    print_warning(arguments,
                  fmt::format("the data have {} classes and the model {} scores, without names: class k of the data is "
                              "taken for score k",
                              classes, form.classes));
  }
  if (shell.class_names.empty() && static_cast<int64_t>(dataset.class_names.size()) == form.classes)
    shell.class_names = dataset.class_names;
}

}  // namespace evenkeel::cli
