// evenkeel fold
#include "evenkeel/tools/fold.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/onnx_subject.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/tool_models.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"

namespace evenkeel::cli {
namespace {

constexpr double kTolerance = 1e-4;
constexpr size_t kMostLayers = 8;  // shown without --verbose

std::optional<tools::Comparison> prove(const onnx::Model& before, const onnx::Model& after,
                                       const tools::FoldRecord& record, const Arguments& arguments) {
  if (arguments.tools.verify == 0) return std::nullopt;
  tools::CompareOptions options{
      .inputs = arguments.tools.verify, .seed = arguments.seed.value_or(1), .threads = take_threads(arguments.threads)};
  onnx::Model reference = before;
  if (arguments.tools.force_inference) {
    options.norms = inference::NormMode::kStored;
    tools::end_dropout(reference);
  }
  for (const tools::FoldedNorm& norm : record.folded)
    options.values.insert(options.values.end(), norm.outputs.begin(), norm.outputs.end());
  const std::vector<float> examples = examples_of(arguments, arguments.tools.verify);
  options.examples = examples;
  try {
    return tools::compare(reference, after, options);
  } catch (const BackendError& error) {
    throw BackendError(
        fmt::format("{}, so the fold cannot be proved; `--verify 0` folds without a proof", error.what()));
  }
}

// NaN is equal to nothing: outputs that are none of them numbers prove nothing.
void require_finite(const tools::Comparison& proof) {
  for (const tools::Difference& d : proof.outputs) {
    if (d.not_finite == 0) continue;
    throw Error(
        fmt::format("output '{}' of the model is not finite in {} of {} values before anything is folded, so that "
                    "nothing can be proved and nothing was "
                    "written; `evenkeel inspect` names norms with bad statistics, `--verify 0` folds without a proof",
                    d.name, d.not_finite, d.count),
        kExitNotFinite);
  }
}

nlohmann::ordered_json json_of(const tools::Comparison& proof, double tolerance) {
  return {{"inputs", proof.inputs},
          {"tolerance", tolerance},
          {"worst", proof.worst_of_all()},
          {"outputs", cli::json_of(proof.outputs)},
          {"layers", cli::json_of(proof.values)}};
}

// What goes into the file: the record, and of the proof what bears repeating.
std::string metadata_of(const tools::FoldRecord& record, const std::optional<tools::Comparison>& proof,
                        double tolerance) {
  nlohmann::ordered_json json = tools::json_of(record);
  json["proof"] = nullptr;
  if (proof) json["proof"] = {{"inputs", proof->inputs}, {"tolerance", tolerance}, {"worst", proof->worst_of_all()}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string record_text(const tools::FoldRecord& record, bool verbose) {
  std::string text =
      fmt::format("{} of {} norms folded\n", record.folded.size(), record.folded.size() + record.left.size());
  for (const tools::FoldedNorm& norm : record.folded) {
    text += fmt::format("  {:<32}  {:<18}  {}\n", shown(norm.norm, 32), norm.pattern,
                        shown(fmt::format("{}", fmt::join(norm.into, ", ")), 60));
  }
  text += text_of_ended_training(record.removed, record.dropout, verbose);
  if (!record.left.empty()) text += "left as they are\n";
  for (const tools::LeftNorm& norm : record.left)
    text += fmt::format("  {:<32}  {}\n", shown(norm.norm, 32), shown(norm.reason, 400));
  return text;
}

std::string proof_text(const tools::Comparison& proof, bool verbose) {
  const size_t most = verbose ? proof.values.size() : kMostLayers;
  std::string text = fmt::format("\nbefore and after on {} inputs\n", proof.inputs);
  text += text_of(proof.outputs, "output", proof.outputs.size());
  if (!proof.values.empty()) text += text_of(proof.values, "folded layer", most);
  return text;
}

}  // namespace

int run_fold(const Arguments& arguments) {
  const ToolArguments& asked = arguments.tools;
  if (asked.out.empty() && !asked.dry_run) throw UsageError("fold needs --out FILE, or --dry-run to write nothing");
  if (!asked.out.empty()) refuse_to_replace(asked.out, "--out", {model_path_of(arguments.model)});
  if (!asked.out.empty() && !asked.out.ends_with(".onnx")) {
    throw UsageError(fmt::format(
        "--out: found {}, but what is written is an ONNX model: give a name that ends in .onnx", asked.out));
  }
  keep_large_blocks();
  const double tolerance = asked.tolerance.value_or(kTolerance);
  refuse_needless_architecture(arguments, {model_path_of(arguments.model)});
  const onnx::Model before = load_as_onnx(arguments.model, arguments);
  warn_of_standardizing_twice(arguments, before);
  onnx::Model after = before;
  const tools::FoldRecord record = tools::fold(after, {.force_inference = asked.force_inference});
  const std::optional<tools::Comparison> proof = prove(before, after, record, arguments);
  if (proof) require_finite(*proof);
  const bool good = !proof || proof->worst_of_all() <= tolerance;
  const bool written = good && !asked.dry_run;
  if (written) {
    after.metadata[tools::kFoldMetadata] = metadata_of(record, proof, tolerance);
    onnx::save(asked.out, after);
  }

  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["model"] = model_path_of(arguments.model);
    json["out"] = written ? nlohmann::ordered_json(asked.out) : nlohmann::ordered_json();
    json.update(tools::json_of(record));
    json["proof"] = proof ? json_of(*proof, tolerance) : nlohmann::ordered_json();
    print_json(json);
  } else {
    std::string text = record_text(record, arguments.verbose);
    if (proof) text += proof_text(*proof, arguments.verbose);
    if (written) text += fmt::format("\nwritten to {}{}\n", asked.out, proof ? "" : " (not proved)");
    print(text);
  }
  if (good) return kExitGood;
  print_note(fmt::format(
      "the folded model differs by {:.3g} of the largest value, more than --tolerance {}: nothing was written",
      proof->worst_of_all(), tolerance));
  return kExitFindings;
}

}  // namespace evenkeel::cli
