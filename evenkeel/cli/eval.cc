// evenkeel eval
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/tools/model_data.h"
#include "evenkeel/tools/onnx_subject.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/tools/onnx_statistics.h"

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
  const bool has_lines =
      !dataset.source_lines.empty();  // a table's examples are shuffled, and lines of weight 0 left out
  std::string text = fmt::format("example,label,predicted,probability{}\n", has_lines ? ",line" : "");
  const auto classes = static_cast<size_t>(model.spec.classes);
  for (size_t i = 0; i < result.predictions.size(); ++i) {
    const int32_t label = dataset.labels[i], predicted = result.predictions[i];
    text += fmt::format("{},{},{},{}{}\n", i, label < 0 ? "" : csv_field(class_name(model.class_names, label)),
                        csv_field(class_name(model.class_names, predicted)),
                        result.probabilities[i * classes + static_cast<size_t>(predicted)],
                        has_lines ? fmt::format(",{}", dataset.source_lines[i]) : "");
  }
  write_file_atomically(path, text);
}

struct Row {
  std::string statistics;
  EvalResult result;
};

// All that is printed, of a model of any kind.
struct Report {
  data::Dataset dataset;
  std::vector<Row> rows;
  std::vector<NormDistance> apart;  // from the running statistics to those of the batches; empty unless both were used
  std::string statistics;           // in words; "" = there are none
  nlohmann::ordered_json statistics_json;
};

std::vector<NormDistance> distances_of(const std::vector<Row>& rows, const Model& model) {
  if (rows.size() < 2) return {};
  std::vector<ChannelStatistics> batches;
  for (const InputMoments& moments : rows[1].result.moments) batches.push_back(statistics_of(moments));
  return distances(model.spec, running_statistics_of(model.spec, model.store), batches);
}

std::vector<NormDistance> distances_of(const std::vector<Row>& rows, const onnx::Model& model) {
  std::vector<NormDistance> all;
  if (rows.size() < 2) return all;
  for (const tools::OnnxNorm& norm : tools::onnx_norms(model)) {
    for (const InputMoments& moments : rows[1].result.moments) {
      if (moments.name == norm.output) all.push_back(distance(norm.stored, statistics_of(moments), norm.eps));
    }
  }
  return all;
}

nlohmann::ordered_json json_of(const Report& report, const Arguments& arguments, double seconds) {
  nlohmann::ordered_json json = json_result();
  const std::vector<Row>& rows = report.rows;
  const EvalResult& first = rows.front().result;
  json["examples"] = first.examples;
  json["loss"] = first.loss;
  json["accuracy"] = first.accuracy;
  json["statistics"] = rows.front().statistics;
  if (rows.size() > 1) {
    json["statistics"] = "both";  // loss and accuracy above are those of the running statistics
    for (const Row& row : rows) json[row.statistics] = {{"loss", row.result.loss}, {"accuracy", row.result.accuracy}};
  }
  if (!report.apart.empty()) json["norms"] = cli::json_of(report.apart);
  json["running_statistics"] = report.statistics_json;
  json["data"] = report.dataset.name;
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
    const std::string name = class_name(model.class_names, static_cast<int64_t>(c));
    text += fmt::format("{:<24}{:>10}   {}\n", shown(name, name.size() + 2), all, percent_text(found));
  }
  return text;
}

// The statistics that were asked for, each by `evaluate`.
template <class Evaluate>
std::vector<Row> rows_of(const Arguments& arguments, const data::Dataset& dataset, uint64_t seed, Evaluate evaluate) {
  std::vector<Row> rows;
  for (const auto& [name, statistics] :
       {std::pair{"running", EvalStatistics::kRunning}, std::pair{"batch", EvalStatistics::kBatch}}) {
    const EvalMode only = statistics == EvalStatistics::kRunning ? EvalMode::kRunning : EvalMode::kBatch;
    if (arguments.statistics != EvalMode::kBoth && arguments.statistics != only) continue;
    if (arguments.statistics == EvalMode::kBoth && only == EvalMode::kBatch && dataset.count == 1) {
      print_warning(arguments, "a single example has no statistics of a batch: running statistics only");
      continue;
    }
    const EvalSettings settings{.statistics = statistics,
                                .batch_size = arguments.batch_size,
                                .threads = take_threads(arguments.threads),
                                .corrupt = arguments.corrupt,
                                .seed = seed};
    rows.push_back({name, evaluate(settings)});
  }
  return rows;
}

Report report_of(Model& model, const Arguments& arguments) {
  if (arguments.statistics != EvalMode::kRunning && !has_norm(model))
    print_warning(arguments, "--statistics has no effect: the network has no batch norm");
  Report report;
  report.dataset = tools::load_split(arguments, model, arguments.split);
  report.rows = rows_of(arguments, report.dataset, tools::seed_of(arguments, model),
                        [&](const EvalSettings& settings) { return evaluate(model, report.dataset, settings); });
  report.apart = distances_of(report.rows, model);
  if (has_norm(model)) report.statistics = statistics_text(model);
  report.statistics_json = json_of_statistics(model);
  return report;
}

Report report_of(tools::OnnxSubject& subject, const Arguments& arguments) {
  Report report;
  data::Splits splits = tools::load_splits(arguments, subject.shell);
  subject.bind(arguments, splits.train.count > 0 ? splits.train.example_shape : splits.test.example_shape);
  report.dataset = subject.take(splits, arguments.split, arguments);
  bool warned = false;  // by the first of two kinds of statistics
  report.rows = rows_of(arguments, report.dataset, arguments.seed.value_or(1), [&](const EvalSettings& settings) {
    return tools::evaluate(subject.model, subject.form, report.dataset, subject.shell.standardization, settings, false,
                           [&](const std::string& sentence) {
                             if (!std::exchange(warned, true)) arguments.warn(sentence);
                           });
  });
  report.apart = distances_of(report.rows, subject.model);
  if (!tools::onnx_norms(subject.model).empty()) report.statistics = statistics_text(subject.model);
  report.statistics_json = json_of_statistics(subject.model);
  return report;
}

}  // namespace

int run_eval(const Arguments& arguments) {
  if (!arguments.predictions.empty()) {
    refuse_to_replace(arguments.predictions, "--predictions", {model_path_of(arguments.model), arguments.data});
  }
  const bool is_foreign = tools::is_onnx(arguments);
  tools::OnnxSubject subject;
  Model own;
  if (is_foreign) {
    subject = tools::OnnxSubject::load(arguments);
  } else {
    own = load_model_of(arguments);
  }
  const Model& model = is_foreign ? subject.shell : own;  // for the names of classes
  const auto start = std::chrono::steady_clock::now();
  const Report report = is_foreign ? report_of(subject, arguments) : report_of(own, arguments);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const EvalResult& first = report.rows.front().result;
  for (const Row& row : report.rows) {
    if (row.result.labelled == 0 || std::isfinite(row.result.loss)) continue;
    print_warning(arguments,
                  fmt::format("the loss with {} statistics is not finite: the model gives scores that are no numbers "
                              "(evenkeel inspect)",
                              row.statistics));
  }
  if (!arguments.predictions.empty()) write_predictions(arguments.predictions, report.dataset, model, first);
  if (arguments.json) {
    print_json(json_of(report, arguments, seconds));
    return kExitGood;
  }
  print(fmt::format("{} {}, {} examples of {}\n", arguments.model, arguments.split, report.dataset.count,
                    report.dataset.name));
  print(report.statistics.empty() ? "\n" : "running statistics: " + report.statistics + "\n\n");
  print("statistics      loss   accuracy\n");
  for (const Row& row : report.rows)
    print(fmt::format("{:<10}{:>10.4f}  {:>9}\n", row.statistics, row.result.loss, percent_text(row.result.accuracy)));
  if (!report.apart.empty())
    print("\nfrom the running statistics to those of the batches\n" + cli::text_of(report.apart));
  if (arguments.verbose && !first.confusion.empty()) print(class_table(first, model));
  return kExitGood;
}

}  // namespace evenkeel::cli
