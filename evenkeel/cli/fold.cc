// evenkeel fold
#include "evenkeel/tools/fold_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/results.h"
#include "evenkeel/cli/tool_models.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {
namespace {

constexpr size_t kMostLayers = 8;  // shown without --verbose

nlohmann::ordered_json json_of(const tools::Comparison& proof, double tolerance) {
  return {{"inputs", proof.inputs},
          {"tolerance", tolerance},
          {"worst", proof.worst_of_all()},
          {"outputs", cli::json_of(proof.outputs)},
          {"layers", cli::json_of(proof.values)}};
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

nlohmann::ordered_json fold_json(const tools::FoldedModel& folded, const Arguments& arguments) {
  const tools::FoldAsked& asked = arguments.tools.fold;
  nlohmann::ordered_json json = json_result();
  json["model"] = model_path_of(arguments);
  json["out"] = folded.written ? nlohmann::ordered_json(asked.out) : nlohmann::ordered_json();
  json.update(tools::json_of(folded.record));
  json["proof"] = folded.proof ? json_of(*folded.proof, folded.tolerance) : nlohmann::ordered_json();
  return json;
}

std::string fold_text(const tools::FoldedModel& folded, const Arguments& arguments) {
  std::string text = record_text(folded.record, arguments.verbose);
  if (folded.proof) text += proof_text(*folded.proof, arguments.verbose);
  if (folded.written)
    text += fmt::format("\nwritten to {}{}\n", arguments.tools.fold.out, folded.proof ? "" : " (not proved)");
  return text;
}

std::string fold_refusal(const tools::FoldedModel& folded) {
  return fmt::format(
      "the folded model differs by {:.3g} of the largest value, more than --tolerance {}: nothing was written",
      folded.proof->worst_of_all(), folded.tolerance);
}

int run_fold(const Arguments& arguments) {
  keep_large_blocks();
  Arguments asked = arguments;
  if (asked.tools.fold.verify > 0) asked.threads = take_threads(asked.threads);
  const tools::FoldedModel folded = tools::fold_model(asked, asked.tools.fold);
  if (arguments.json) {
    print_json(fold_json(folded, arguments));
  } else {
    print(fold_text(folded, arguments));
  }
  if (folded.good) return kExitGood;
  print_note(fold_refusal(folded));
  return kExitFindings;
}

}  // namespace evenkeel::cli
