#include "evenkeel/cli/tool_models.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"

namespace evenkeel::cli {

std::string text_of_ended_training(const std::vector<tools::RemovedOutput>& removed,
                                   const std::vector<std::string>& dropout, bool verbose) {
  constexpr size_t kMost = 8;
  std::vector<std::string> lines;
  for (const tools::RemovedOutput& output : removed) lines.push_back(tools::in_words(output));
  for (const std::string& node : dropout) lines.push_back(fmt::format("dropout '{}' drops nothing any more", node));
  const size_t shown_lines = verbose ? lines.size() : std::min(kMost, lines.size());
  std::string text;
  for (size_t i = 0; i < shown_lines; ++i) text += "  " + shown(lines[i], 200) + "\n";
  if (shown_lines < lines.size())
    text += fmt::format("  ... and {} more of these (--verbose)\n", lines.size() - shown_lines);
  return text;
}

nlohmann::ordered_json json_of(const std::vector<tools::Difference>& differences) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const tools::Difference& d : differences) {
    list.push_back({{"name", d.name},
                    {"max_abs", d.max_abs},
                    {"mean_abs", d.mean_abs},
                    {"largest", d.largest},
                    {"relative", d.relative},
                    {"values", d.count}});
  }
  return list;
}

std::string text_of(const std::vector<tools::Difference>& differences, const char* what, size_t most) {
  std::vector<tools::Difference> sorted = differences;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.relative > b.relative; });
  std::string text =
      fmt::format("{:<40}  {:>10}  {:>10}  {:>10}  {:>10}\n", what, "max error", "mean error", "largest", "relative");
  for (size_t i = 0; i < std::min(most, sorted.size()); ++i) {
    const tools::Difference& d = sorted[i];
    text += fmt::format("{:<40}  {:>10.3g}  {:>10.3g}  {:>10.3g}  {:>10.3g}\n", shown(d.name, 40), d.max_abs,
                        d.mean_abs, d.largest, d.relative);
  }
  if (sorted.size() > most) text += fmt::format("... and {} more that differ less (--verbose)\n", sorted.size() - most);
  return text;
}

}  // namespace evenkeel::cli
