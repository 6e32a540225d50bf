#include "evenkeel/tools/inspect.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/classifier.h"
#include "evenkeel/tools/model_data.h"
#include "evenkeel/tools/onnx_subject.h"
#include "evenkeel/tools/state_dict.h"
#include "evenkeel/tools/statistics_words.h"
#include "evenkeel/train/evaluator.h"

namespace evenkeel::tools {
namespace {

// One of evenkeel's own, or weights of a declared architecture: what it says about its statistics, and it can be run on data.
void take_own_model(const Asked& asked, Inspected& inspected) {
  Model model = load_model_of(asked);
  inspected.table = norm_table(model);
  inspected.running_statistics = json_of_statistics(model);
  if (has_norm(model)) inspected.statistics_text = evenkeel::statistics_text(model);
  if (!asked.has_data() || inspected.table.norms.empty()) return;

  const data::Dataset dataset = load_split(asked, model, asked.split, Labels::kOptional);
  std::map<std::string, std::vector<Moments>> moments;
  Accuracies accuracies;
  int64_t labelled = 0;
  for (const EvalStatistics statistics : {EvalStatistics::kRunning, EvalStatistics::kBatch}) {
    const EvalSettings settings{.statistics = statistics,
                                .batch_size = asked.batch_size,
                                .threads = asked.threads,
                                .corrupt = asked.corrupt,
                                .seed = seed_of(asked, model)};
    const EvalResult result = evenkeel::evaluate(model, dataset, settings);
    (statistics == EvalStatistics::kBatch ? accuracies.batch : accuracies.stored) = result.accuracy;
    labelled = result.labelled;
    for (const InputMoments& norm : result.moments) moments[norm.name] = norm.channels;
  }
  inspected.observations = observe(inspected.table, moments);
  if (labelled > 0) inspected.accuracies = accuracies;
  inspected.examples = dataset.count;
}

// An ONNX model on data: every norm normalizes by the batch, so that each is judged by itself, as with models of evenkeel; by its stored
// statistics where the model takes a fixed number of examples at a time.
void run_onnx(const Asked& asked, Inspected& inspected) {
  OnnxSubject subject = OnnxSubject::load(asked);
  data::Splits splits = load_splits(asked, subject.shell, Labels::kOptional);
  subject.bind(asked, splits.train.count > 0 ? splits.train.example_shape : splits.test.example_shape, true);
  const data::Dataset dataset = subject.take(splits, asked.split, asked);
  const bool by_batch = subject.form.fixed_batch == 0 && dataset.count > 1;
  const auto evaluated = [&](EvalStatistics statistics) {
    const EvalSettings settings{.statistics = statistics,
                                .batch_size = asked.batch_size,
                                .threads = asked.threads,
                                .corrupt = asked.corrupt,
                                .seed = asked.seed.value_or(1)};
    return tools::evaluate(subject.model, subject.form, dataset, subject.shell.standardization, settings, !by_batch);
  };
  const EvalResult stored = evaluated(EvalStatistics::kRunning);
  const EvalResult batch = by_batch ? evaluated(EvalStatistics::kBatch) : stored;
  std::map<std::string, std::vector<Moments>> moments;
  for (const InputMoments& norm : batch.moments) moments[norm.name] = norm.channels;
  inspected.observations = observe(inspected.table, moments);
  if (by_batch && stored.labelled > 0) inspected.accuracies = Accuracies{stored.accuracy, batch.accuracy};
  inspected.examples = dataset.count;
}

void refuse_data(const Asked& asked, const char* what) {
  if (!asked.has_data()) return;
  throw BackendError(
      fmt::format("--data: {} cannot be run on data here; without --data inspect reads its numbers", what));
}

Inspected look(const std::string& path, const Asked& asked) {
  Inspected inspected;
  const ModelKind kind = kind_of(asked);
  if (kind == ModelKind::kSafetensors) {
    const TensorFile file = tensors_of(asked);
    if (!is_state_dict(file) || !asked.weights.architecture.empty()) {
      take_own_model(asked, inspected);
      return inspected;
    }
    refuse_data(asked, "a state dict without --architecture");
    inspected.table = norm_table_of_state_dict(file);
    return inspected;
  }
  if (kind == ModelKind::kOnnx) {
    const onnx::Model model = onnx::load(path);
    refuse_needless_architecture(asked, {path});
    inspected.table = norm_table(model);
    inspected.running_statistics = json_of_statistics(model);
    if (!inspected.running_statistics.is_null() && !inspected.running_statistics["estimate"].is_null())
      inspected.statistics_text = tools::statistics_text(model);
    if (asked.has_data()) run_onnx(asked, inspected);
    return inspected;
  }
  refuse_needless_architecture(asked, {path});
  refuse_data(asked, "a Keras model");
  inspected.table = read_norm_table(path);
  return inspected;
}

}  // namespace

Inspected inspect(const Asked& asked) {
  const std::string path = model_path_of(asked);
  Inspected inspected = look(path, asked);
  inspected.path = path;
  inspected.findings = lint(inspected.table);
  for (Finding& finding : lint_observations(inspected.table, inspected.observations, inspected.accuracies))
    inspected.findings.push_back(std::move(finding));
  return inspected;
}

NormTable read_norm_table(const Asked& asked) {
  if (!asked.tensors) return read_norm_table(model_path_of(asked));
  if (is_state_dict(*asked.tensors)) return norm_table_of_state_dict(*asked.tensors);
  return norm_table(model_from(*asked.tensors, asked.model));
}

}  // namespace evenkeel::tools
