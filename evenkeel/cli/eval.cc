// evenkeel eval
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/model_data.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"

namespace evenkeel::cli {
namespace {

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

// From the running statistics to those of the batches; empty unless both were used.
std::vector<NormDistance> distances_of(const std::vector<Row>& rows, const Model& model) {
  if (rows.size() < 2) return {};
  std::vector<ChannelStatistics> batches;
  for (const NormMoments& moments : rows[1].result.moments) batches.push_back(statistics_of(moments));
  return distances(model.spec, running_statistics_of(model.spec, model.store), batches);
}

nlohmann::ordered_json json_of(const std::vector<Row>& rows, const std::vector<NormDistance>& distances,
                               const Model& model, const data::Dataset& dataset, const Arguments& arguments,
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
  if (!distances.empty()) json["norms"] = cli::json_of(distances);
  json["running_statistics"] = json_of_statistics(model);
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

}  // namespace

int run_eval(const Arguments& arguments) {
  const int threads = take_threads(arguments.threads);
  Model model = load_model_of(arguments);
  if (arguments.statistics != EvalMode::kRunning && !arguments.quiet && !has_norm(model))
    print_note("warning: --statistics has no effect: the network has no batch norm");
  const data::Dataset dataset = load_split(arguments, model, arguments.split);

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

  const std::vector<NormDistance> apart = distances_of(rows, model);
  if (arguments.json) {
    print_json(json_of(rows, apart, model, dataset, arguments, seconds));
    return kExitGood;
  }
  print(fmt::format("{} {}, {} examples of {}\n", arguments.model, arguments.split, dataset.count, dataset.name));
  print((has_norm(model) ? "running statistics: " + statistics_text(model) + "\n\n" : "\n"));
  print("statistics      loss   accuracy\n");
  for (const Row& row : rows)
    print(fmt::format("{:<10}{:>10.4f}  {:>9}\n", row.statistics, row.result.loss, percent_text(row.result.accuracy)));
  if (!apart.empty()) print("\nfrom the running statistics to those of the batches\n" + cli::text_of(apart));
  if (arguments.verbose && !rows.front().result.confusion.empty()) print(class_table(rows.front().result, model));
  return kExitGood;
}

}  // namespace evenkeel::cli
