#include "evenkeel/tools/onnx_subject.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "evenkeel/tools/model_data.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/json_depth.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/inference_mode.h"
#include "evenkeel/tools/norm_node.h"
#include "evenkeel/tools/onnx_metadata.h"

namespace evenkeel::tools {

void warn_of_standardizing_twice(const Asked& asked, const onnx::Model& model) {
  const data::Preprocess& stated = asked.preprocess;
  if ((stated.mean.empty() && stated.std.empty()) || !standardizes_itself(model)) return;
  asked.warn(
      "the model standardizes its inputs itself, and with --mean and --std they are standardized twice: leave "
      "them out");
}

// Norms in training mode whose mean or variance is no constant.
static std::vector<std::string> without_statistics(const onnx::Model& model) {
  const onnx::Constants constants(model.graph);
  std::vector<std::string> names;
  for (const size_t index : norms_in_training(model.graph, model.opset())) {
    const onnx::Node& node = model.graph.nodes[index];
    if (!read_norm(node, model.opset(), constants).has_statistics) names.push_back(norm_name(node));
  }
  return names;
}

OnnxSubject OnnxSubject::load(const Asked& asked) {
  refuse_needless_architecture(asked, {asked.model});
  OnnxSubject subject{.model = onnx::load(asked.model), .form = {}, .shell = {}, .ended_dropout = {}};
  const size_t training = norms_in_training(subject.model.graph, subject.model.opset()).size();
  if (training > 0) {
    subject.ended_dropout = end_dropout(subject.model);
    const std::vector<std::string> bare = without_statistics(subject.model);
    asked.warn(fmt::format(
        "{} norm{} of the model {} in training mode and would normalize by the batch wherever the "
        "file is run; here {}, and dropout drops nothing (evenkeel explain {})",
        training, training == 1 ? "" : "s", training == 1 ? "is" : "are",
        bare.empty() ? "the stored statistics are used"
                     : fmt::format("{}what the file computes in place of stored statistics is used for '{}'{}",
                                   bare.size() < training ? "the stored statistics are used, and " : "", bare[0],
                                   bare.size() > 1 ? fmt::format(" and {} more", bare.size() - 1) : ""),
        bare.size() < training ? "EK112" : "EK122"));
  }
  if (const auto meaning = input_meaning(subject.model)) {
    subject.shell.standardization = meaning->left_to_caller;
    subject.shell.input_range = meaning->range();
  }
  warn_of_standardizing_twice(asked, subject.model);
  const auto classes = subject.model.metadata.find("evenkeel.classes");
  if (classes == subject.model.metadata.end()) return subject;
  require_shallow_json(classes->second, fmt::format("'{}': metadata 'evenkeel.classes'", asked.model));
  const auto names = nlohmann::json::parse(classes->second, nullptr, false);
  if (!names.is_array()) return subject;  // somebody else's words
  for (const auto& name : names)
    subject.shell.class_names.push_back(name.is_string() ? name.get<std::string>() : name.dump());
  return subject;
}

void OnnxSubject::bind(const Asked& asked, const Shape& example, bool any_output) {
  form = classifier_form(model, {.example = example,
                                 .channels_last = asked.preprocess.layout == data::Layout::kChannelsLast,
                                 .any_output = any_output});
  shell.spec.input = form.example;
  shell.spec.classes = form.classes;
  const data::Standardization& stated = shell.standardization;
  if (!stated.mean.empty() && !asked.preprocess.normalizes() &&
      (form.example.empty() || std::ssize(stated.mean) != form.example[0])) {
    throw FormatError(
        fmt::format("{}: its metadata say how {} channels are to be standardized, but it takes examples of {}; say it "
                    "by --mean and --std",
                    asked.model, stated.mean.size(), to_string(form.example)));
  }
  if (form.classes > 0 && static_cast<int64_t>(shell.class_names.size()) != form.classes) shell.class_names.clear();
}

data::Dataset OnnxSubject::take(data::Splits& splits, const std::string& split, const Asked& asked) {
  data::Dataset dataset = take_split(splits, split, asked, shell);
  complete(asked, dataset);
  return dataset;
}

void OnnxSubject::complete(const Asked& asked, const data::Dataset& dataset) {
  const size_t channels = static_cast<size_t>(dataset.example_shape.empty() ? 1 : dataset.example_shape[0]);
  if (shell.standardization.mean.empty())
    shell.standardization = {std::vector<double>(channels, 0), std::vector<double>(channels, 1)};
  const auto classes = static_cast<int64_t>(dataset.class_names.size());
  if (shell.class_names.empty() && classes > 0 && classes != form.classes && form.classes > 0) {
    asked.warn(
        fmt::format("the data have {} classes and the model {} scores, without names: class k of the data is "
                    "taken for score k",
                    classes, form.classes));
  }
  if (shell.class_names.empty() && static_cast<int64_t>(dataset.class_names.size()) == form.classes)
    shell.class_names = dataset.class_names;
}

}  // namespace evenkeel::tools
