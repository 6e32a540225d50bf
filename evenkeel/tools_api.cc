// evenkeel/tools.h: plain structs in front of tools/.
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/tools.h"
#include "evenkeel/tools/convert.h"
#include "evenkeel/tools/diff_models.h"
#include "evenkeel/tools/fold_model.h"
#include "evenkeel/tools/inspect.h"
#include "evenkeel/tools/lint_rules.h"
#include "evenkeel/tools/recalibrate.h"
#include "evenkeel/train/words.h"

namespace evenkeel {
namespace {

std::string one_of(const std::string& option, const std::string& word, const std::vector<std::string>& words) {
  if (std::find(words.begin(), words.end(), word) != words.end()) return word;
  throw UsageError(option + ": found '" + word + "'" + did_you_mean(word, words));
}

// The bounds of the command line's options: what is beyond them is a mistake, and may take all memory or end the process.
constexpr int64_t kMostInputs = 1 << 20;

void check_count(const char* option, int64_t value, int64_t most) {
  if (value >= 0 && value <= most) return;
  throw UsageError(std::string(option) + " is " + std::to_string(value) + "; expected 0 to " + std::to_string(most));
}

// above_zero: else any finite number.
void check_numbers(const char* option, const std::vector<double>& values, bool above_zero) {
  for (const double value : values) {
    if (std::isfinite(value) && (!above_zero || value > 0)) continue;
    throw UsageError(std::string(option) + ": found " + std::to_string(value) + "; expected a " +
                     (above_zero ? "number above 0" : "finite number"));
  }
}

tools::WeightsAsked weights_of(const std::string& architecture, const std::vector<int64_t>& input, int64_t classes) {
  tools::WeightsAsked weights{.architecture = architecture, .input = {}, .classes = {}};
  if (!input.empty()) weights.input = input;
  if (classes != 0) weights.classes = classes;
  return weights;
}

tools::Asked asked_of(const std::string& path, const ToolOptions& options) {
  tools::Asked asked;
  asked.model = path;
  asked.weights = weights_of(options.architecture, options.input, options.classes);
  asked.data = options.data;
  if (!options.split.empty()) asked.split = one_of("split", options.split, {"train", "validation", "test"});
  if (!options.label.empty()) asked.label = options.label;
  if (options.scale) check_numbers("scale", {*options.scale}, true);
  check_numbers("mean", options.mean, false);
  check_numbers("std", options.std, true);
  check_count("threads", options.threads, kMostThreads);
  asked.preprocess.scale = options.scale;
  asked.preprocess.mean = options.mean;
  asked.preprocess.std = options.std;
  asked.corrupt = data::parse_corrupt(options.corrupt);
  asked.seed = options.seed;
  asked.threads = options.threads;
  asked.on_note = asked.on_warning = options.on_warning;
  return asked;
}

// What says how examples become inputs has no meaning without examples.
void refuse_without_data(const ToolOptions& options) {
  if (!options.data.empty()) return;
  const char* option = options.scale              ? "scale"
                       : !options.mean.empty()    ? "mean"
                       : !options.std.empty()     ? "std"
                       : !options.corrupt.empty() ? "corrupt"
                       : !options.split.empty()   ? "split"
                       : !options.label.empty()   ? "label"
                                                  : nullptr;
  if (option != nullptr) {
    throw UsageError(std::string(option) +
                     " says which examples of data become inputs, and how, and without data there are none: "
                     "give data, or leave it out");
  }
}

NormShift shift_of(const NormDistance& d) { return {d.name, d.mean_shift, d.log_var_ratio, d.channel}; }

NormReport report_of(tools::NormRecord& norm) {
  NormReport report;
  report.conventions = norm.conventions();
  report.name = std::move(norm.name);
  report.channels = norm.channels;
  report.eps = norm.eps;
  report.eps_known = norm.eps_known;
  report.new_batch_weight = norm.new_batch_weight;
  report.training_mode = norm.training;
  report.batches = norm.batches;
  report.gamma = std::move(norm.gamma);
  report.beta = std::move(norm.beta);
  report.mean = std::move(norm.mean);
  report.var = std::move(norm.var);
  report.fed_by = std::move(norm.fed_by);
  report.feeds = std::move(norm.feeds);
  return report;
}

ModelReport report_of(tools::Inspected inspected) {
  ModelReport report;
  report.format = inspected.table.format;
  report.running_statistics = inspected.statistics_text;
  for (tools::NormRecord& norm : inspected.table.norms) report.norms.push_back(report_of(norm));
  for (tools::Finding& finding : inspected.findings) {
    const tools::LintRule& rule = tools::lint_rule(finding.code);
    report.findings.push_back({finding.code, tools::name_of(finding.severity), finding.norm, rule.title, finding.reason,
                               rule.remedy, finding.channels});
  }
  report.notes = inspected.table.notes;
  report.examples = inspected.examples;
  for (const tools::NormObservation& seen : inspected.observations) report.shifts.push_back(shift_of(seen.distance));
  if (inspected.accuracies) {
    report.accuracy_stored = inspected.accuracies->stored;
    report.accuracy_batch = inspected.accuracies->batch;
  }
  return report;
}

tools::RecalibrateAsked how_of(const std::string& out, const RecalibrateOptions& options) {
  tools::RecalibrateAsked how;
  how.kind = running_statistics_from_name(options.estimate);
  if (!options.running_variance.empty())
    how.biased = one_of("running_variance", options.running_variance, {"biased", "unbiased"}) == "biased";
  if (options.batch_size != 0) how.batch_size = options.batch_size;
  how.examples = options.examples;
  how.augment = data::parse_augment(options.augment);
  if (!options.split.empty()) how.split = one_of("split", options.split, {"train", "validation", "test"});
  how.out = out;
  how.test = options.test;
  how.blend = options.blend;
  if (!(how.blend > 0 && how.blend <= 1)) throw UsageError("blend: expected a number above 0 and at most 1");
  how.undo = options.undo;
  how.dry_run = !options.write;
  if (!options.adapt.empty()) {
    const bool labels = one_of("adapt", options.adapt, {"gamma-beta", "gamma-beta-entropy"}) == "gamma-beta";
    how.adapt = labels ? AdaptGoal::kLabels : AdaptGoal::kEntropy;
  }
  const RecalibrateOptions usual;
  if (options.adapt.empty() && (options.adapt_epochs != usual.adapt_epochs || options.adapt_rate != usual.adapt_rate)) {
    throw UsageError("adapt_epochs and adapt_rate have no meaning without adapt: give it, or leave them out");
  }
  how.adapt_epochs = options.adapt_epochs;
  how.adapt_rate = options.adapt_rate;
  return how;
}

std::optional<RecalibrateReport::Score> score_of(const std::optional<EvalResult>& result) {
  if (!result) return std::nullopt;
  return RecalibrateReport::Score{result->loss, result->accuracy};
}

FindingRule rule_of(const tools::LintRule& rule) {
  return {rule.code, tools::name_of(rule.severity), rule.title, rule.explanation, rule.remedy};
}

}  // namespace

ModelReport inspect_model(const std::string& path, const ToolOptions& options) {
  const tools::Asked asked = asked_of(path, options);
  refuse_without_data(options);
  return report_of(tools::inspect(asked));
}

ModelReport inspect_tensors(const std::vector<NamedTensor>& tensors, const ToolOptions& options) {
  auto file = std::make_shared<TensorFile>();
  std::set<std::string> names;
  for (const NamedTensor& tensor : tensors) {
    // By division: the product of extents may be beyond every integer.
    size_t left = tensor.values.size();
    bool fits = true;
    for (const int64_t extent : tensor.shape) {
      fits = fits && extent > 0 && left % static_cast<size_t>(extent) == 0;
      if (fits) left /= static_cast<size_t>(extent);
    }
    const bool none = std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end();
    if (none ? !tensor.values.empty() : !fits || left != 1) {
      throw UsageError("tensor '" + tensor.name + "' has " + std::to_string(tensor.values.size()) +
                       " values, but its shape is " + to_string(tensor.shape));
    }
    if (!names.insert(tensor.name).second)
      throw UsageError("there are two tensors '" + tensor.name + "'; expected each name once");
    Tensor copy(DType::kF32, tensor.shape);
    std::copy(tensor.values.begin(), tensor.values.end(), copy.values<float>().begin());
    file->tensors.emplace_back(tensor.name, std::move(copy));
  }
  tools::Asked asked = asked_of("the tensors given", options);
  asked.tensors = std::move(file);
  return report_of(tools::inspect(asked));
}

FoldReport fold_model(const std::string& in, const std::string& out, const FoldOptions& options) {
  check_count("verify", options.verify, kMostInputs);
  if (options.tolerance && (!std::isfinite(*options.tolerance) || *options.tolerance < 0)) {
    throw UsageError("tolerance is " + std::to_string(*options.tolerance) + "; expected a finite number of at least 0");
  }
  if (options.architecture.empty())
    refuse_without_data(options);  // weights alone: the network begins with what is stated
  if (!options.corrupt.empty()) throw UsageError("corrupt has no meaning for fold_model; leave it out");
  if (options.verify == 0 && !options.data.empty())
    throw UsageError("data are for the proof, and verify is 0, which is none: leave one of them out");
  if (options.write && out.empty())
    throw UsageError("out is empty: expected the .onnx file to write, or write = false");
  tools::FoldedModel folded = tools::fold_model(asked_of(in, options), {.out = out,
                                                                        .verify = options.verify,
                                                                        .tolerance = options.tolerance,
                                                                        .dry_run = !options.write,
                                                                        .force_inference = options.force_inference});
  FoldReport report;
  for (tools::FoldedNorm& norm : folded.record.folded)
    report.folded.push_back({std::move(norm.norm), std::move(norm.pattern), std::move(norm.into)});
  for (tools::LeftNorm& norm : folded.record.left)
    report.left.push_back({std::move(norm.norm), std::move(norm.reason)});
  report.proved = folded.proof.has_value();
  if (folded.proof) report.worst = folded.proof->worst_of_all();
  report.written = folded.written;
  return report;
}

RecalibrateReport recalibrate_model(const std::string& in, const std::string& out, const RecalibrateOptions& options) {
  if (options.undo && !options.adapt.empty()) {
    throw UsageError("undo brings back what was, and adapt makes something new; give one of them");
  }
  tools::Recalibration work(asked_of(in, options), how_of(out, options));
  RecalibrateReport report;
  if (options.undo) {
    for (const NormDistance& d : work.undo().moved) report.moved.push_back(shift_of(d));
  } else {
    const tools::Recalibrated done = work.run();
    for (const NormDistance& d : done.moved) report.moved.push_back(shift_of(d));
    report.examples = done.work.examples;
    report.passes = done.work.passes;
    report.seconds = done.work.seconds;
    report.before = score_of(done.before);
    report.after = score_of(done.after);
    report.warnings = done.warnings;
    if (options.on_warning) {
      for (const std::string& warning : done.warnings) options.on_warning(warning);
    }
  }
  work.save();
  report.running_statistics = work.model().words();
  report.out = work.out();
  return report;
}

DiffReport diff_models(const std::string& a, const std::string& b, const DiffOptions& options) {
  tools::DiffAsked how;
  how.other = b;
  check_count("random", options.random, kMostInputs);
  refuse_without_data(options);
  if (!options.corrupt.empty()) throw UsageError("corrupt has no meaning for diff_models; leave it out");
  if (options.random > 0) how.random = options.random;
  tools::ModelDiff diff = tools::diff_models(asked_of(a, options), how);
  DiffReport report;
  for (const tools::NormChange& c : diff.norms.changes) {
    report.norms.push_back({c.name, c.other, c.channels, c.effect, c.gamma.relative, c.beta.relative, c.mean.relative,
                            c.var.relative, c.scale.relative, c.eps_differs});
  }
  report.only_a = std::move(diff.norms.only_a);
  report.only_b = std::move(diff.norms.only_b);
  report.notes = std::move(diff.norms.notes);
  if (!diff.outputs) return report;
  report.notes.insert(report.notes.end(), diff.outputs->notes.begin(), diff.outputs->notes.end());
  report.inputs = diff.outputs->inputs;
  report.outputs_only_a = std::move(diff.outputs->only_a);
  report.outputs_only_b = std::move(diff.outputs->only_b);
  for (const tools::Difference& d : diff.outputs->outputs)
    report.outputs.push_back({d.name, d.max_abs, d.mean_abs, d.largest, d.relative});
  return report;
}

ConvertReport convert_model(const std::string& in, const std::string& out, const ConvertOptions& options) {
  const tools::WeightsAsked weights = weights_of(options.architecture, options.input, options.classes);
  tools::ConvertOptions how;
  how.weights = {weights.architecture, weights.input, weights.classes, options.mean, options.std};
  if ((options.training || !options.standardization) && !out.ends_with(".onnx")) {
    throw UsageError(std::string(options.training ? "training" : "standardization = false") +
                     " is about ONNX, but out is '" + out + "'; expected a name that ends in .onnx, or leave it out");
  }
  how.onnx.training = options.training;
  how.onnx.standardization = options.standardization;
  tools::Conversion done = tools::convert(tools::model_path_of(in), out, how);
  return {done.from, done.to, done.architecture, done.tensors, std::move(done.left_out)};
}

FindingRule explain(const std::string& code) { return rule_of(tools::lint_rule(code)); }

std::vector<FindingRule> explain_all() {
  std::vector<FindingRule> rules;
  for (const tools::LintRule& rule : tools::lint_rules()) rules.push_back(rule_of(rule));
  return rules;
}

}  // namespace evenkeel
