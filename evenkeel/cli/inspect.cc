// evenkeel inspect
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/model_data.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/onnx_subject.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/norm_page.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel::cli {
namespace {

// One of evenkeel's own, or weights of a declared architecture: what it says about its statistics, and it can be run on data.
void take_own_model(const Arguments& arguments, Inspected& inspected) {
  Model model = load_model_of(arguments);
  inspected.table = tools::norm_table(model);
  inspected.running_statistics = json_of_statistics(model);
  if (has_norm(model)) inspected.statistics_text = statistics_text(model);
  if (arguments.data.empty() || inspected.table.norms.empty()) return;

  const data::Dataset dataset = load_split(arguments, model, arguments.split);
  std::map<std::string, std::vector<Moments>> moments;
  tools::Accuracies accuracies;
  for (const EvalStatistics statistics : {EvalStatistics::kRunning, EvalStatistics::kBatch}) {
    const EvalSettings settings{.statistics = statistics,
                                .batch_size = arguments.batch_size,
                                .threads = take_threads(arguments.threads),
                                .corrupt = arguments.corrupt,
                                .seed = seed_of(arguments, model)};
    const EvalResult result = evaluate(model, dataset, settings);
    (statistics == EvalStatistics::kBatch ? accuracies.batch : accuracies.stored) = result.accuracy;
    for (const NormMoments& norm : result.moments) moments[norm.name] = norm.channels;
  }
  inspected.observations = tools::observe(inspected.table, moments);
  inspected.accuracies = accuracies;
  inspected.examples = dataset.count;
}

// An ONNX model on data: every norm normalizes by the batch, so that each is judged by itself, as with models of evenkeel; by its stored
// statistics where the model takes a fixed number of examples at a time.
void run_onnx(const Arguments& arguments, Inspected& inspected) {
  OnnxSubject subject = OnnxSubject::load(arguments);
  data::Splits splits = load_splits(arguments, subject.shell);
  subject.bind(arguments, splits.train.count > 0 ? splits.train.example_shape : splits.test.example_shape, true);
  const data::Dataset dataset = subject.take(splits, arguments.split, arguments);
  const bool by_batch = subject.form.fixed_batch == 0 && dataset.count > 1;
  const auto evaluated = [&](EvalStatistics statistics) {
    const EvalSettings settings{.statistics = statistics,
                                .batch_size = arguments.batch_size,
                                .threads = take_threads(arguments.threads),
                                .corrupt = arguments.corrupt,
                                .seed = arguments.seed.value_or(1)};
    return tools::evaluate(subject.model, subject.form, dataset, subject.shell.standardization, settings, !by_batch);
  };
  const EvalResult stored = evaluated(EvalStatistics::kRunning);
  const EvalResult batch = by_batch ? evaluated(EvalStatistics::kBatch) : stored;
  std::map<std::string, std::vector<Moments>> moments;
  for (const NormMoments& norm : batch.moments) moments[norm.name] = norm.channels;
  inspected.observations = tools::observe(inspected.table, moments);
  if (by_batch && stored.labelled > 0) inspected.accuracies = tools::Accuracies{stored.accuracy, batch.accuracy};
  inspected.examples = dataset.count;
}

void refuse_data(const Arguments& arguments, const char* what) {
  if (arguments.data.empty()) return;
  throw BackendError(
      fmt::format("--data: {} cannot be run on data here; without --data inspect reads its numbers", what));
}

Inspected inspect(const std::string& path, const Arguments& arguments) {
  Inspected inspected;
  const ModelKind kind = kind_of_file(path);
  if (kind == ModelKind::kSafetensors) {
    const TensorFile file = read_safetensors(path);
    if (!tools::is_state_dict(file) || !arguments.weights.architecture.empty()) {
      take_own_model(arguments, inspected);
      return inspected;
    }
    refuse_data(arguments, "a state dict without --architecture");
    inspected.table = tools::norm_table_of_state_dict(file);
    return inspected;
  }
  if (kind == ModelKind::kOnnx) {
    const onnx::Model model = onnx::load(path);
    refuse_needless_architecture(arguments, {path});
    inspected.table = tools::norm_table(model);
    inspected.running_statistics = json_of_statistics(model);
    if (!inspected.running_statistics.is_null() && !inspected.running_statistics["estimate"].is_null())
      inspected.statistics_text = statistics_text(model);
    if (!arguments.data.empty()) run_onnx(arguments, inspected);
    return inspected;
  }
  refuse_needless_architecture(arguments, {path});
  refuse_data(arguments, "a Keras model");
  inspected.table = tools::read_norm_table(path);
  return inspected;
}

bool fails(const std::vector<tools::Finding>& findings, const std::string& fail_on) {
  if (fail_on.empty()) return false;
  const tools::Severity least = fail_on == "error" ? tools::Severity::kError : tools::Severity::kWarning;
  return std::any_of(findings.begin(), findings.end(),
                     [&](const tools::Finding& finding) { return finding.severity >= least; });
}

}  // namespace

int run_inspect(const Arguments& arguments) {
  const std::string path = model_path_of(arguments.model);
  if (!arguments.tools.html.empty()) refuse_to_replace(arguments.tools.html, "--html", {path, arguments.data});
  Inspected inspected = inspect(path, arguments);
  inspected.path = path;
  inspected.findings = tools::lint(inspected.table);
  for (tools::Finding& finding :
       tools::lint_observations(inspected.table, inspected.observations, inspected.accuracies))
    inspected.findings.push_back(std::move(finding));

  if (!arguments.tools.html.empty())
    write_file_atomically(arguments.tools.html, tools::norm_page(inspected.table, inspected.findings, path));
  if (arguments.json) {
    print_json(inspect_json(inspected));
  } else if (arguments.tools.csv) {
    print(inspect_csv(inspected));
  } else {
    print(inspect_text(inspected, terminal_of(stdout, arguments.color), arguments.verbose));
  }
  return fails(inspected.findings, arguments.tools.fail_on) ? kExitFindings : kExitGood;
}

}  // namespace evenkeel::cli
