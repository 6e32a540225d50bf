// evenkeel eval
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/core/error.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/model_io/atomic_file.h"

namespace evenkeel::cli {
namespace {

std::string setting(const Model& model, const std::string& name) {
  const auto found = model.training.find(name);
  return found == model.training.end() ? "" : found->second;
}

uint64_t seed_of(const Arguments& arguments, const Model& model) {
  if (arguments.seed) return *arguments.seed;
  return number_from<uint64_t>(setting(model, "seed")).value_or(1);
}

// What the model was trained on is the default of everything: the same seed makes the same splits.
data::LoadOptions load_options(const Arguments& arguments, const Model& model, bool same_data) {
  data::LoadOptions options;
  if (same_data) options.label_column = setting(model, "label");
  if (same_data) options.weight_column = setting(model, "weight");
  options.validation_fraction = number_from<double>(setting(model, "validation")).value_or(0);
  options.seed = seed_of(arguments, model);
  options.feature_names = model.feature_names;
  options.known_classes = model.spec.classes;
  if (arguments.label) options.label_column = *arguments.label;
  if (arguments.weight) options.weight_column = *arguments.weight;
  if (arguments.validation) options.validation_fraction = *arguments.validation;
  return options;
}

// Labels of the data set as classes of the model, by name: a table may lack a class, or list them in another order.
void match_classes(data::Dataset& dataset, const Model& model) {
  if (dataset.class_names == model.class_names || model.class_names.empty()) return;
  const bool numbered_alike = dataset.class_count() == static_cast<int64_t>(model.class_names.size());
  std::vector<int32_t> to(dataset.class_names.size(), -1);
  for (size_t i = 0; i < to.size(); ++i) {
    for (size_t j = 0; j < model.class_names.size(); ++j) {
      if (dataset.class_names[i] == model.class_names[j]) to[i] = static_cast<int32_t>(j);
    }
    if (to[i] >= 0) continue;
    if (numbered_alike) return;  // other names for as many classes: taken by number
    throw UsageError(fmt::format("data '{}' has a class '{}' that the model does not know; it knows {}", dataset.name,
                                 dataset.class_names[i], fmt::join(model.class_names, ", ")));
  }
  for (int32_t& label : dataset.labels) {
    if (label >= 0) label = to[static_cast<size_t>(label)];
  }
  dataset.class_names = model.class_names;
}

data::Dataset load_split(const Arguments& arguments, const Model& model) {
  const std::string trained_on = model.training.count("data") > 0 ? setting(model, "data") : model.data_name;
  const std::string spec = arguments.data.empty() ? trained_on : arguments.data;
  if (spec.empty()) throw UsageError("the model does not say what it was trained on; give --data D");
  data::Splits splits = data::load(spec, load_options(arguments, model, spec == trained_on));
  data::Dataset dataset = std::move(arguments.split == "train"        ? splits.train
                                    : arguments.split == "validation" ? splits.validation
                                                                      : splits.test);
  if (dataset.count == 0) {
    throw UsageError(fmt::format(
        "data '{}' has no examples in its {} split{}", spec, arguments.split,
        arguments.split == "validation" ? "; --validation F keeps a share of the training set for it" : ""));
  }
  match_classes(dataset, model);
  data::fit_to(dataset, model.input_range);
  return dataset;
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

void write_predictions(const std::string& path, const data::Dataset& dataset, const Model& model,
                       const EvalResult& result) {
  std::string text = "example,label,predicted,probability\n";
  const auto classes = static_cast<size_t>(model.spec.classes);
  for (size_t i = 0; i < result.predictions.size(); ++i) {
    const int32_t label = dataset.labels[i], predicted = result.predictions[i];
    text += fmt::format("{},{},{},{}\n", i, label < 0 ? "" : csv_field(class_name(model.class_names, label)),
                        csv_field(class_name(model.class_names, predicted)),
                        result.probabilities[i * classes + static_cast<size_t>(predicted)]);
  }
  write_file_atomically(path, text);
}

struct Row {
  std::string statistics;
  EvalResult result;
};

nlohmann::ordered_json json_of(const std::vector<Row>& rows, const data::Dataset& dataset, const Arguments& arguments,
                               double seconds) {
  nlohmann::ordered_json json = json_result();
  const EvalResult& first = rows.front().result;
  json["examples"] = first.examples;
  json["loss"] = first.loss;
  json["accuracy"] = first.accuracy;
  json["statistics"] = rows.front().statistics;
  if (rows.size() > 1) {
    json["statistics"] = "both";  // loss and accuracy above are those of the running statistics
    for (const Row& row : rows) json[row.statistics] = {{"loss", row.result.loss}, {"accuracy", row.result.accuracy}};
  }
  json["data"] = dataset.name;
  json["split"] = arguments.split;
  json["corrupt"] = data::to_string(arguments.corrupt);
  json["model"] = model_path_of(arguments.model);
  json["seconds"] = seconds;
  return json;
}

std::string class_table(const EvalResult& result, const Model& model) {
  std::string text = "\nclass                     examples   found\n";
  const auto classes = static_cast<size_t>(model.spec.classes);
  for (size_t c = 0; c < classes; ++c) {
    int64_t all = 0;
    for (size_t p = 0; p < classes; ++p) all += result.confusion[c * classes + p];
    const double found = all > 0 ? static_cast<double>(result.confusion[c * classes + c]) / static_cast<double>(all)
                                 : std::numeric_limits<double>::quiet_NaN();
    text += fmt::format("{:<24}{:>10}   {}\n", class_name(model.class_names, static_cast<int64_t>(c)), all,
                        percent_text(found));
  }
  return text;
}

bool has_norm(const Model& model) {
  return !build_network(model.spec, Mode::kInference, {.with_loss = false}).buffers.empty();
}

}  // namespace

int run_eval(const Arguments& arguments) {
  const int threads = take_threads(arguments.threads);
  Model model = load_model_of(arguments.model);
  if (arguments.statistics != EvalMode::kRunning && !arguments.quiet && !has_norm(model))
    print_note("warning: --statistics has no effect: the network has no batch norm");
  const data::Dataset dataset = load_split(arguments, model);

  const auto start = std::chrono::steady_clock::now();
  std::vector<Row> rows;
  for (const auto& [name, statistics] :
       {std::pair{"running", EvalStatistics::kRunning}, std::pair{"batch", EvalStatistics::kBatch}}) {
    const EvalMode only = statistics == EvalStatistics::kRunning ? EvalMode::kRunning : EvalMode::kBatch;
    if (arguments.statistics != EvalMode::kBoth && arguments.statistics != only) continue;
    if (arguments.statistics == EvalMode::kBoth && only == EvalMode::kBatch && dataset.count == 1) {
      print_note("warning: a single example has no statistics of a batch: running statistics only");
      continue;
    }
    const EvalSettings settings{.statistics = statistics,
                                .batch_size = arguments.batch_size,
                                .threads = threads,
                                .corrupt = arguments.corrupt,
                                .seed = seed_of(arguments, model)};
    rows.push_back({name, evaluate(model, dataset, settings)});
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!arguments.predictions.empty()) write_predictions(arguments.predictions, dataset, model, rows.front().result);

  if (arguments.json) {
    print_json(json_of(rows, dataset, arguments, seconds));
    return kExitGood;
  }
  print(fmt::format("{} {}, {} examples of {}\n\n", arguments.model, arguments.split, dataset.count, dataset.name));
  print("statistics      loss   accuracy\n");
  for (const Row& row : rows)
    print(fmt::format("{:<10}{:>10.4f}  {:>9}\n", row.statistics, row.result.loss, percent_text(row.result.accuracy)));
  if (arguments.verbose && !rows.front().result.confusion.empty()) print(class_table(rows.front().result, model));
  return kExitGood;
}

}  // namespace evenkeel::cli
