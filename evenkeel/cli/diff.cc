// evenkeel diff
#include "evenkeel/tools/diff.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/tool_models.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {
namespace {

constexpr int64_t kExamples = 256;  // of --data
constexpr size_t kMostNorms = 20;   // shown without --verbose

std::optional<tools::Comparison> compare_outputs(const Arguments& arguments) {
  if (arguments.data.empty() && !arguments.tools.random) return std::nullopt;
  if (!arguments.data.empty() && arguments.tools.random)
    throw UsageError("--data and --random do not go together: leave one of them out");
  tools::CompareOptions options{.inputs = arguments.tools.random.value_or(kExamples),
                                .seed = arguments.seed.value_or(1),
                                .threads = take_threads(arguments.threads)};
  const std::vector<float> examples = examples_of(arguments, kExamples);
  options.examples = examples;
  return tools::compare(load_as_onnx(arguments.model, arguments), load_as_onnx(arguments.tools.other, arguments),
                        options);
}

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

std::string only_text(const std::vector<std::string>& names, const char* where) {
  if (names.empty()) return "";
  constexpr size_t kMost = 8;
  std::string text;
  for (size_t i = 0; i < std::min(kMost, names.size()); ++i) text += (i > 0 ? ", " : "") + shown(names[i], 32);
  return fmt::format("{} norms are in {} only: {}{}\n", names.size(), where, text, names.size() > kMost ? ", ..." : "");
}

}  // namespace

int run_diff(const Arguments& arguments) {
  const std::string a = model_path_of(arguments.model), b = model_path_of(arguments.tools.other);
  refuse_needless_architecture(arguments, {a, b});
  const tools::NormDiff diff = tools::diff_norms(tools::read_norm_table(a), tools::read_norm_table(b));
  const std::optional<tools::Comparison> outputs = compare_outputs(arguments);
  // Outputs that were compared say it all: a fold changes norms and nothing else.
  bool within = true;
  if (arguments.tools.tolerance) {
    within = outputs
                 ? outputs->worst() <= *arguments.tools.tolerance
                 : diff.largest_effect() <= *arguments.tools.tolerance && diff.only_a.empty() && diff.only_b.empty();
  }

  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["a"] = a;
    json["b"] = b;
    json["norms"] = json_of(diff);
    json["only_in_a"] = diff.only_a;
    json["only_in_b"] = diff.only_b;
    json["notes"] = diff.notes;
    json["inputs"] = outputs ? outputs->inputs : 0;
    json["outputs"] = outputs ? cli::json_of(outputs->outputs) : nlohmann::ordered_json();
    json["within_tolerance"] = arguments.tools.tolerance ? nlohmann::ordered_json(within) : nlohmann::ordered_json();
    print_json(json);
  } else {
    std::string text = text_of(diff, arguments.verbose) + only_text(diff.only_a, "A") + only_text(diff.only_b, "B");
    if (outputs) {
      text += fmt::format("\noutputs on {} inputs\n", outputs->inputs);
      text += cli::text_of(outputs->outputs, "output", outputs->outputs.size());
    }
    print(text);
  }
  return within ? kExitGood : kExitFindings;
}

}  // namespace evenkeel::cli
