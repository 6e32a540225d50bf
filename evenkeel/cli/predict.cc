// evenkeel predict
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/tools/model_data.h"
#include "evenkeel/tools/onnx_subject.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/terminal.h"
#include "evenkeel/core/error.h"
#include "evenkeel/data/folder.h"

namespace evenkeel::cli {
namespace {

// The `top` most probable classes of a row, the most probable first; equal ones by number.
std::vector<int64_t> most_probable(std::span<const float> probabilities, int64_t top) {
  std::vector<int64_t> classes(probabilities.size());
  std::iota(classes.begin(), classes.end(), 0);
  const auto count = std::min<std::ptrdiff_t>(top, std::ssize(classes));
  std::partial_sort(classes.begin(), classes.begin() + count, classes.end(), [&](int64_t a, int64_t b) {
    const float pa = probabilities[static_cast<size_t>(a)], pb = probabilities[static_cast<size_t>(b)];
    return pa != pb ? pa > pb : a < b;
  });
  classes.resize(static_cast<size_t>(count));
  return classes;
}

nlohmann::ordered_json json_of(const data::Dataset& dataset, const Model& model, const EvalResult& result,
                               int64_t top) {
  nlohmann::ordered_json json = json_result();
  json["examples"] = result.examples;
  nlohmann::ordered_json& list = json["predictions"] = nlohmann::ordered_json::array();
  const auto classes = static_cast<size_t>(model.spec.classes);
  for (size_t i = 0; i < result.predictions.size(); ++i) {
    const std::span<const float> row(result.probabilities.data() + i * classes, classes);
    const std::vector<int64_t> best = most_probable(row, top);
    nlohmann::ordered_json entry{{"name", dataset.example_names[i]},
                                 {"class", class_name(model.class_names, best[0])},
                                 {"class_index", best[0]},
                                 {"probability", row[static_cast<size_t>(best[0])]}};
    for (const int64_t c : best) {
      if (top > 1)
        entry["top"].push_back(
            {{"class", class_name(model.class_names, c)}, {"probability", row[static_cast<size_t>(c)]}});
    }
    list.push_back(std::move(entry));
  }
  return json;
}

// One line per example: name, then class and probability, as often as asked for. Columns on a terminal, tabs elsewhere.
std::string text_of(const data::Dataset& dataset, const Model& model, const EvalResult& result, int64_t top,
                    bool columns) {
  const auto classes = static_cast<size_t>(model.spec.classes);
  size_t name_width = 0, class_width = 0;
  for (const std::string& name : dataset.example_names) name_width = std::max(name_width, name.size());
  for (int64_t c = 0; c < model.spec.classes; ++c)
    class_width = std::max(class_width, class_name(model.class_names, c).size());
  std::string text;
  for (size_t i = 0; i < result.predictions.size(); ++i) {
    const std::span<const float> row(result.probabilities.data() + i * classes, classes);
    text += columns ? fmt::format("{:<{}}", dataset.example_names[i], name_width) : dataset.example_names[i];
    for (const int64_t c : most_probable(row, top)) {
      const std::string whole = class_name(model.class_names, c), name = shown(whole, whole.size() + 2);
      const float probability = row[static_cast<size_t>(c)];
      text += columns ? fmt::format("  {:<{}}  {:.4f}", name, class_width, probability)
                      : fmt::format("\t{}\t{:.6g}", name, probability);
    }
    text += '\n';
  }
  return text;
}

// The class names of --labels.
std::vector<std::string> labels_of(const std::string& path, int64_t classes) {
  std::vector<std::string> names = data::read_class_names(path);
  if (static_cast<int64_t>(names.size()) != classes) {
    throw UsageError(fmt::format("--labels: found {} names in {}, but the model has {} outputs; give one a line",
                                 names.size(), path, classes));
  }
  return names;
}

// The extents of an example that a model leaves open: of --resize, else none.
Shape example_wanted(const Arguments& arguments, const onnx::Model& model) {
  const std::vector<inference::Port> ports = inference::input_ports(model);
  if (ports.empty() || ports[0].shape.size() != 4 || !arguments.preprocess.resize) return {};
  const bool last = ports[0].shape[1] > 4 && ports[0].shape[3] > 0 && ports[0].shape[3] <= 4;
  const int64_t channels = ports[0].shape[last ? 3 : 1];
  return {channels > 0 ? channels : 3, arguments.preprocess.resize->height, arguments.preprocess.resize->width};
}

}  // namespace

int run_predict(const Arguments& arguments) {
  const int threads = take_threads(arguments.threads);
  const bool is_foreign = tools::is_onnx(arguments);
  tools::OnnxSubject subject;
  Model own;
  if (is_foreign) {
    subject = tools::OnnxSubject::load(arguments);
    subject.bind(arguments, example_wanted(arguments, subject.model));
  } else {
    own = load_model_of(arguments);
  }
  Model& model = is_foreign ? subject.shell : own;
  if (arguments.top > model.spec.classes) {
    throw UsageError(fmt::format("--top: found {}, but the model has {} classes", arguments.top, model.spec.classes));
  }
  if (!arguments.labels.empty()) model.class_names = labels_of(arguments.labels, model.spec.classes);
  const bool stated = arguments.preprocess.normalizes();
  data::Dataset dataset =
      data::load_examples(arguments.files, model.spec.input,
                          {.range = stated ? std::nullopt : model.input_range, .feature_names = model.feature_names},
                          tools::preprocess_of(arguments, model));
  for (const std::string& note : dataset.notes) arguments.note(note);
  tools::state_preprocessing(arguments, dataset, model);
  const EvalSettings settings{.batch_size = arguments.batch_size, .threads = threads};
  if (is_foreign) subject.complete(arguments, dataset);
  const EvalResult result = is_foreign
                                ? tools::evaluate(subject.model, subject.form, dataset, model.standardization, settings,
                                                  false, [&](const std::string& sentence) { arguments.warn(sentence); })
                                : evaluate(model, dataset, settings);
  if (arguments.json) {
    print_json(json_of(dataset, model, result, arguments.top));
  } else {
    print(text_of(dataset, model, result, arguments.top, terminal_of(stdout, arguments.color).interactive));
  }
  return kExitGood;
}

}  // namespace evenkeel::cli
