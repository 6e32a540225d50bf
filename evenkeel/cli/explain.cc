// evenkeel explain
#include <fmt/format.h>

#include "evenkeel/cli/commands.h"
#include "evenkeel/tools/lint_rules.h"

namespace evenkeel::cli {
namespace {

constexpr size_t kWidth = 100;

nlohmann::ordered_json json_of(const tools::LintRule& rule) {
  return {{"code", rule.code},
          {"severity", tools::name_of(rule.severity)},
          {"title", rule.title},
          {"explanation", rule.explanation},
          {"remedy", rule.remedy}};
}

std::string text_of(const tools::LintRule& rule, const Terminal& terminal) {
  return fmt::format("{} ({}): {}\n\n{}\n\nWhat to do: {}.\n", terminal.bold(rule.code), tools::name_of(rule.severity),
                     rule.title, wrap(rule.explanation, kWidth, 0), wrap(rule.remedy, kWidth, 0));
}

}  // namespace

int run_explain(const Arguments& arguments) {
  std::vector<tools::LintRule> rules;
  for (const std::string& code : arguments.tools.codes) rules.push_back(tools::lint_rule(code));
  const bool all = rules.empty();
  if (all) rules = tools::lint_rules();
  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["findings"] = nlohmann::ordered_json::array();
    for (const tools::LintRule& rule : rules) json["findings"].push_back(json_of(rule));
    print_json(json);
    return kExitGood;
  }
  const Terminal terminal = terminal_of(stdout, arguments.color);
  std::string text;
  for (const tools::LintRule& rule : rules) {
    if (all) {
      text += fmt::format("{}  {:<8} {}\n", terminal.bold(rule.code), tools::name_of(rule.severity), rule.title);
    } else {
      text += (text.empty() ? "" : "\n") + text_of(rule, terminal);
    }
  }
  print(text);
  return kExitGood;
}

}  // namespace evenkeel::cli
