// evenkeel report
#include "evenkeel/cli/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "evenkeel/cli/commands.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/report/run_report.h"
#include "evenkeel/report/tensorboard.h"

namespace evenkeel::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kReportFile = "report.html";

// The log of a run that is given as its folder, or as the log itself.
std::string log_path_of(const std::string& run) {
  std::error_code error;
  if (!fs::exists(run, error))
    throw UsageError(fmt::format("there is no run '{}'; give the folder of a run, or its log.jsonl", run));
  if (!fs::is_directory(run, error)) return run;
  const fs::path inside = fs::path(run) / "log.jsonl";
  if (!fs::exists(inside, error)) {
    throw UsageError(
        fmt::format("the folder '{}' holds no log.jsonl; give the folder of a run, as `evenkeel train` makes it", run));
  }
  return inside.string();
}

// The name of the folder, as of "runs/cnn-1/" and of "." within it.
std::string name_of_run(const std::string& log_path) {
  std::error_code error;
  const fs::path whole = fs::absolute(log_path, error).lexically_normal();
  const std::string name = whole.parent_path().filename().string();
  return name.empty() ? log_path : name;
}

// Runs of one name are told apart by what was typed, and if that is the same, by a number.
std::vector<report::NamedLog> read_logs(const std::vector<std::string>& runs) {
  std::vector<std::string> paths;
  for (const std::string& run : runs) paths.push_back(log_path_of(run));
  std::vector<report::NamedLog> logs;
  std::vector<std::string> names;
  for (const std::string& path : paths) names.push_back(name_of_run(path));
  for (size_t i = 0; i < paths.size(); ++i) {
    std::string name = names[i];
    if (std::count(names.begin(), names.end(), name) > 1) name = runs[i];
    const auto same = std::count(runs.begin(), runs.begin() + static_cast<std::ptrdiff_t>(i), runs[i]);
    if (same > 0) name += fmt::format(" ({})", same + 1);
    logs.push_back({.name = name, .records = read_log(paths[i])});
    if (logs.back().records.empty())
      throw FormatError(fmt::format("'{}' holds no record of a run; was it stopped before its first step?", paths[i]));
  }
  return logs;
}

std::string folder_made(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw_io_error("make the folder", folder, error.value());
  return folder;
}

// The name of a folder for a run below the one of all.
std::string folder_name_of(std::string name) {
  std::replace(name.begin(), name.end(), '/', '-');
  return name.empty() || name == "." || name == ".." ? "run" : name;
}

void write_events(const std::vector<report::NamedLog>& logs, const std::string& folder) {
  for (const report::NamedLog& log : logs) {
    const fs::path inside = logs.size() == 1 ? fs::path(folder) : fs::path(folder) / folder_name_of(log.name);
    write_file_atomically((fs::path(folder_made(inside.string())) / report::event_file_name(log)).string(),
                          report::events_of(log));
  }
}

}  // namespace

void write_events(const std::vector<std::string>& runs, const std::string& folder) {
  write_events(read_logs(runs), folder);
}

std::string write_report(const ReportArguments& asked) {
  std::vector<std::string> paths;
  for (const std::string& run : asked.runs) paths.push_back(log_path_of(run));
  std::string out = asked.out;
  if (out.empty()) {
    if (paths.size() > 1) {
      throw UsageError(
          fmt::format("a report of {} runs needs a name: --out FILE, such as --out {}", paths.size(), kReportFile));
    }
    out = (fs::path(paths.front()).parent_path() / kReportFile).string();
  }
  refuse_to_replace(out, "--out", paths);
  const std::vector<report::NamedLog> logs = read_logs(asked.runs);
  const report::Page page = report::page_of(logs, asked.title);
  write_file_atomically(out, report::html_of(page));
  if (!asked.csv.empty()) {
    const fs::path folder = folder_made(asked.csv);
    for (const report::TextFile& file : report::csv_files_of(page))
      write_file_atomically((folder / file.name).string(), file.text);
  }
  if (!asked.tensorboard.empty()) write_events(logs, asked.tensorboard);
  return out;
}

int run_report(const Arguments& arguments) {
  const ReportArguments& asked = arguments.report;
  const std::string out = write_report(asked);
  if (!arguments.json) {
    std::string text = fmt::format("{:<14}{}\n", "report", out);
    if (!asked.csv.empty()) text += fmt::format("{:<14}{}\n", "numbers", asked.csv);
    if (!asked.tensorboard.empty()) text += fmt::format("{:<14}{}\n", "tensorboard", asked.tensorboard);
    print(text);
    return kExitGood;
  }
  nlohmann::ordered_json json = json_result();
  const auto path = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  json["report"] = out;
  json["csv"] = path(asked.csv);
  json["tensorboard"] = path(asked.tensorboard);
  print_json(json);
  return kExitGood;
}

}  // namespace evenkeel::cli
