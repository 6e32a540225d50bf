#include "evenkeel/tools/fold_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/as_onnx.h"
#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/fold_linear.h"
#include "evenkeel/tools/onnx_subject.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel::tools {
namespace {

// One number per channel of what is stated by `option`: those, one for all, or none.
std::vector<double> per_channel(const std::vector<double>& stated, const char* option, double otherwise,
                                const Model& model) {
  const int64_t channels = model.spec.input.at(0);
  if (std::ssize(stated) == channels) return stated;
  if (stated.size() > 1) {
    throw UsageError(fmt::format("{}: found {} numbers, but the network takes examples of {}; give one, or {}", option,
                                 stated.size(), to_string(model.spec.input), channels));
  }
  return std::vector<double>(static_cast<size_t>(channels), stated.empty() ? otherwise : stated[0]);
}

// Weights alone do not say how their inputs are standardized: the network begins with what is stated, as `convert` writes it. What is left of
// it in `preprocess` makes the inputs of that network.
onnx::Model with_stated_front(Model model, data::Preprocess& preprocess) {
  data::Standardization& front = model.standardization;
  front = {per_channel(preprocess.mean, "--mean", 0, model), per_channel(preprocess.std, "--std", 1, model)};
  preprocess.mean.clear();
  preprocess.std.clear();
  const double scale = preprocess.scale.value_or(0);
  if (model.spec.input.size() != 3) {  // features as they are: (x / S - mean) / std = (x - S mean) / (S std)
    for (std::vector<double>* values : {&front.mean, &front.std}) {
      for (double& value : *values) value *= preprocess.scale.value_or(1);
    }
    preprocess.scale.reset();
  } else if (scale == 1) {
    model.input_range = data::ValueRange{0, 255};  // pixels as they are
  } else if (preprocess.scale) {                   // of u = pixel / 255: (255 u / S - mean) / std
    for (std::vector<double>* values : {&front.mean, &front.std}) {
      for (double& value : *values) value *= scale / 255;
    }
    preprocess.scale = 255;
  }
  return to_onnx(model);
}

onnx::Model network_of(Asked& asked) {
  const bool weights_alone = kind_of(asked) == ModelKind::kSafetensors && is_state_dict(tensors_of(asked));
  if (!weights_alone || !asked.preprocess.normalizes()) return load_as_onnx(asked);
  return with_stated_front(load_model_of(asked), asked.preprocess);
}

std::optional<Comparison> prove(const onnx::Model& before, const onnx::Model& after, const FoldRecord& record,
                                const Asked& asked, const FoldAsked& how) {
  if (how.verify == 0) return std::nullopt;
  CompareOptions options{.inputs = how.verify, .seed = asked.seed.value_or(1), .threads = asked.threads};
  onnx::Model reference = before;
  if (how.force_inference) {
    options.norms = inference::NormMode::kStored;
    end_dropout(reference);
  }
  for (const FoldedNorm& norm : record.folded)
    options.values.insert(options.values.end(), norm.outputs.begin(), norm.outputs.end());
  const std::vector<float> examples = examples_of(asked, how.verify);
  options.examples = examples;
  try {
    return compare(reference, after, options);
  } catch (const BackendError& error) {
    throw BackendError(
        fmt::format("{}, so the fold cannot be proved; `--verify 0` folds without a proof", error.what()));
  }
}

// NaN is equal to nothing: outputs that are none of them numbers prove nothing.
void require_finite(const Comparison& proof) {
  for (const Difference& d : proof.outputs) {
    if (d.not_finite == 0) continue;
    throw Error(
        fmt::format("output '{}' of the model is not finite in {} of {} values before anything is folded, so that "
                    "nothing can be proved and nothing was "
                    "written; `evenkeel inspect` names norms with bad statistics, `--verify 0` folds without a proof",
                    d.name, d.not_finite, d.count),
        kExitNotFinite);
  }
}

// What goes into the file: the record, and of the proof what bears repeating.
std::string metadata_of(const FoldRecord& record, const std::optional<Comparison>& proof, double tolerance) {
  nlohmann::ordered_json json = json_of(record);
  json["proof"] = nullptr;
  if (proof) json["proof"] = {{"inputs", proof->inputs}, {"tolerance", tolerance}, {"worst", proof->worst_of_all()}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

double usual_tolerance(const onnx::Model& model) {
  constexpr double kUsual = 1e-4, kFloat16 = 1e-2, kBfloat16 = 5e-2;
  double tolerance = kUsual;
  for (const onnx::Node& node : model.graph.nodes) {
    if (!is_product(node) || node.inputs.size() < 2) continue;
    const onnx::TensorValue* weights = model.graph.initializer(node.inputs[1]);
    if (weights == nullptr) continue;
    if (weights->type == onnx::ElementType::kFloat16) tolerance = std::max(tolerance, kFloat16);
    if (weights->type == onnx::ElementType::kBfloat16) tolerance = std::max(tolerance, kBfloat16);
  }
  return tolerance;
}

FoldedModel fold_model(const Asked& of, const FoldAsked& how) {
  Asked asked = of;
  const std::string path = model_path_of(asked);
  if (how.out.empty() && !how.dry_run) throw UsageError("fold needs --out FILE, or --dry-run to write nothing");
  if (!how.out.empty()) refuse_to_replace(how.out, "--out", {path});
  if (!how.out.empty() && !how.out.ends_with(".onnx")) {
    throw UsageError(
        fmt::format("--out: found {}, but what is written is an ONNX model: give a name that ends in .onnx", how.out));
  }
  refuse_needless_architecture(asked, {path});
  const onnx::Model before = network_of(asked);
  warn_of_standardizing_twice(asked, before);
  FoldedModel folded{.model = before, .record = {}, .proof = {}};
  folded.record = fold(folded.model, {.force_inference = how.force_inference});
  folded.proof = prove(before, folded.model, folded.record, asked, how);
  if (folded.proof) require_finite(*folded.proof);
  folded.tolerance = how.tolerance.value_or(usual_tolerance(before));
  folded.good = !folded.proof || folded.proof->worst_of_all() <= folded.tolerance;
  folded.written = folded.good && !how.dry_run;
  if (folded.good) folded.model.metadata[kFoldMetadata] = metadata_of(folded.record, folded.proof, folded.tolerance);
  if (folded.written) onnx::save(how.out, folded.model);
  return folded;
}

}  // namespace evenkeel::tools
