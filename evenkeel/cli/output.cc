#include <fmt/format.h>

#include <cstdio>

#include "evenkeel/cli/commands.h"
#include "evenkeel/report/run_report.h"

namespace evenkeel::cli {

nlohmann::ordered_json json_result() { return {{"schema_version", kJsonSchemaVersion}}; }

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print_json(const nlohmann::ordered_json& result) {
  print(result.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

void print_note(const std::string& message) {
  const std::string line = "evenkeel: " + message + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void print_warning(const Arguments& arguments, const std::string& message) {
  if (!arguments.quiet) print_note("warning: " + message);
}

std::string command_line_of(const Arguments& arguments) {
  std::string line = "evenkeel";
  for (const std::string& word : arguments.words) line += " " + report::shell_word(word);
  return line;
}

std::string class_name(const std::vector<std::string>& names, int64_t index) {
  return index >= 0 && index < static_cast<int64_t>(names.size()) ? names[static_cast<size_t>(index)]
                                                                  : std::to_string(index);
}

}  // namespace evenkeel::cli
