// evenkeel diff
#include "evenkeel/tools/diff_models.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/results.h"
#include "evenkeel/cli/tool_models.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {
namespace {

constexpr size_t kMostNorms = 20;  // shown without --verbose

nlohmann::ordered_json json_of(const tools::ValueChange& change) {
  return {{"relative", change.relative}, {"largest", change.largest}, {"channel", change.channel}};
}

nlohmann::ordered_json json_of(const tools::NormDiff& diff) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const tools::NormChange& c : diff.changes) {
    list.push_back({{"name", c.name},
                    {"name_in_b", c.other},
                    {"channels", c.channels},
                    {"effect", c.effect},
                    {"gamma", json_of(c.gamma)},
                    {"beta", json_of(c.beta)},
                    {"running_mean", json_of(c.mean)},
                    {"running_var", json_of(c.var)},
                    {"folded_scale", json_of(c.scale)},
                    {"eps_differs", c.eps_differs}});
  }
  return list;
}

std::string text_of(const tools::NormDiff& diff, bool verbose) {
  std::string text;
  for (const std::string& note : diff.notes) text += shown(note, 200) + "\n";
  if (diff.changes.empty()) return text + "no norms to compare\n";
  const auto differ =
      std::count_if(diff.changes.begin(), diff.changes.end(), [](const auto& c) { return c.effect > 0; });
  text += fmt::format("{} of {} norms differ in what they compute\n", differ, diff.changes.size());
  text += fmt::format("{:<32}  {:>8}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}\n", "norm", "channels", "effect",
                      "gamma", "beta", "mean", "variance", "scale");
  const size_t most = verbose ? diff.changes.size() : std::min(kMostNorms, diff.changes.size());
  for (size_t i = 0; i < most; ++i) {
    const tools::NormChange& c = diff.changes[i];
    text += fmt::format("{:<32}  {:>8}  {:>9.3g}  {:>9.3g}  {:>9.3g}  {:>9.3g}  {:>9.3g}  {:>9.3g}{}\n",
                        shown(c.name, 32), c.channels, c.effect, c.gamma.relative, c.beta.relative, c.mean.relative,
                        c.var.relative, c.scale.relative, c.eps_differs ? "  (eps differs)" : "");
  }
  if (most < diff.changes.size())
    text += fmt::format("... and {} more that changed less (--verbose)\n", diff.changes.size() - most);
  return text;
}

std::string only_text(const std::vector<std::string>& names, const char* what, const char* where) {
  if (names.empty()) return "";
  constexpr size_t kMost = 8;
  std::string text;
  for (size_t i = 0; i < std::min(kMost, names.size()); ++i) text += (i > 0 ? ", " : "") + shown(names[i], 32);
  return fmt::format("{} {}{} in {} only: {}{}\n", names.size(), what, names.size() == 1 ? " is" : "s are", where, text,
                     names.size() > kMost ? ", ..." : "");
}

}  // namespace

nlohmann::ordered_json diff_json(const tools::ModelDiff& diff, const Arguments& arguments) {
  nlohmann::ordered_json json = json_result();
  const std::optional<tools::Comparison>& outputs = diff.outputs;
  json["a"] = model_path_of(arguments);
  json["b"] =
      arguments.tools.diff.other_tensors ? arguments.tools.diff.other : model_path_of(arguments.tools.diff.other);
  json["norms"] = json_of(diff.norms);
  json["only_in_a"] = diff.norms.only_a;
  json["only_in_b"] = diff.norms.only_b;
  json["notes"] = diff.norms.notes;
  for (size_t i = 0; outputs && i < outputs->notes.size(); ++i) json["notes"].push_back(outputs->notes[i]);
  json["inputs"] = outputs ? outputs->inputs : 0;
  json["outputs"] = outputs ? cli::json_of(outputs->outputs) : nlohmann::ordered_json();
  for (size_t i = 0; outputs && i < outputs->outputs.size(); ++i)
    json["outputs"][i]["name_in_b"] = outputs->outputs[i].other;
  json["outputs_only_in_a"] = outputs ? outputs->only_a : std::vector<std::string>();
  json["outputs_only_in_b"] = outputs ? outputs->only_b : std::vector<std::string>();
  json["within_tolerance"] =
      arguments.tools.diff.tolerance ? nlohmann::ordered_json(diff.within) : nlohmann::ordered_json();
  return json;
}

std::string diff_text(const tools::ModelDiff& diff, const Arguments& arguments) {
  std::string text = text_of(diff.norms, arguments.verbose) + only_text(diff.norms.only_a, "norm", "A") +
                     only_text(diff.norms.only_b, "norm", "B");
  if (diff.outputs) {
    text += fmt::format("\noutputs on {} inputs\n", diff.outputs->inputs);
    for (const std::string& note : diff.outputs->notes) text += shown(note, 200) + "\n";
    text += cli::text_of(diff.outputs->outputs, "output", diff.outputs->outputs.size());
    text += only_text(diff.outputs->only_a, "output", "A") + only_text(diff.outputs->only_b, "output", "B");
  }
  return text;
}

int run_diff(const Arguments& arguments) {
  Arguments asked = arguments;
  if (asked.has_data() || asked.tools.diff.random) asked.threads = take_threads(asked.threads);
  const tools::ModelDiff diff = tools::diff_models(asked, asked.tools.diff);
  if (arguments.json) {
    print_json(diff_json(diff, arguments));
  } else {
    print(diff_text(diff, arguments));
  }
  return diff.within ? kExitGood : kExitFindings;
}

}  // namespace evenkeel::cli
