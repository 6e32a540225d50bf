#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/tools/norm_page.h"

namespace evenkeel::cli {
namespace {

using tools::Finding;
using tools::NormRecord;

constexpr size_t kNameWidth = 40, kNeighbourWidth = 26;
// More findings than this of severity info and one code are shown as one line.
constexpr size_t kMostAlike = 3;

nlohmann::ordered_json ends_of(const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  const tools::Range range = tools::range_of(values);
  return nlohmann::ordered_json{range.low, range.high};
}

// gamma and beta: 1 and 0 where the norm has none, nothing where they are not known.
nlohmann::ordered_json ends_of(const NormRecord& norm, const std::vector<double>& values, double otherwise) {
  if (values.empty() && norm.unreadable.empty()) return nlohmann::ordered_json{otherwise, otherwise};
  return ends_of(values);
}

template <class T>
nlohmann::ordered_json or_null(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

nlohmann::ordered_json json_of(const NormRecord& norm) {
  nlohmann::ordered_json json{{"name", norm.name},
                              {"channels", norm.channels},
                              {"eps", norm.eps},
                              {"eps_known", norm.eps_known},
                              {"affine", !norm.gamma.empty() || !norm.unreadable.empty()},
                              {"gamma", ends_of(norm, norm.gamma, 1)},
                              {"beta", ends_of(norm, norm.beta, 0)}};
  json["running_mean"] = ends_of(norm.mean);
  json["running_var"] = ends_of(norm.var);
  json["folded_scale"] = ends_of(norm.scale());
  json["num_batches_tracked"] = or_null(norm.batches);
  json["new_batch_weight"] = or_null(norm.new_batch_weight);
  json["conventions"] = norm.conventions();
  json["training_mode"] = norm.training;
  json["fed_by"] = norm.fed_by;
  json["feeds"] = norm.feeds;
  return json;
}

nlohmann::ordered_json json_of(const tools::ChannelTotals& totals) {
  return {{"norms", totals.norms},
          {"channels", totals.channels},
          {"variance_at_or_below_eps", totals.variance_below_eps},
          {"variance_below_1e-10", totals.variance_below_1e10},
          {"variance_denormal", totals.variance_denormal},
          {"variance_zero", totals.variance_zero},
          {"variance_negative", totals.variance_negative},
          {"not_finite", totals.not_finite},
          {"gamma_near_0", totals.gamma_near_0}};
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string joined(const std::vector<std::string>& words) { return fmt::format("{}", fmt::join(words, ", ")); }

std::string range_text(const std::vector<double>& values, const char* otherwise) {
  if (values.empty()) return otherwise;
  const tools::Range range = tools::range_of(values);
  return fmt::format("{:.3g} .. {:.3g}", range.low, range.high);
}

// A table whose columns are as wide as their widest cell; the first `left` of them to the left.
std::string aligned(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& left) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      line += (i > 0 ? "  " : "") +
              (left[i] ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("{:>{}}", row[i], widths[i]));
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string norm_rows(const Inspected& inspected) {
  const auto& norms = inspected.table.norms;
  const bool neighbours =
      std::any_of(norms.begin(), norms.end(), [](const NormRecord& n) { return !n.fed_by.empty(); });
  const bool batches =
      std::any_of(norms.begin(), norms.end(), [](const NormRecord& n) { return n.batches.has_value(); });
  std::vector<std::vector<std::string>> rows{
      {"norm", "channels", "eps", "gamma", "beta", "running mean", "running variance"}};
  std::vector<bool> left{true, false, false, false, false, false, false};
  if (batches) rows[0].push_back("batches");
  if (batches) left.push_back(false);
  if (neighbours) rows[0].insert(rows[0].end(), {"fed by", "feeds"});
  if (neighbours) left.insert(left.end(), {true, true});
  for (const NormRecord& norm : norms) {
    std::vector<std::string> row{shown(norm.name, kNameWidth),
                                 fmt::format("{}", norm.channels),
                                 fmt::format("{:.2g}{}", norm.eps, norm.eps_known ? "" : "?"),
                                 range_text(norm.gamma, norm.unreadable.empty() ? "1" : "?"),
                                 range_text(norm.beta, norm.unreadable.empty() ? "0" : "?"),
                                 range_text(norm.mean, "?"),
                                 range_text(norm.var, "?")};
    if (batches) row.push_back(norm.batches ? fmt::format("{}", *norm.batches) : "");
    if (neighbours) row.push_back(shown(joined(norm.fed_by), kNeighbourWidth));
    if (neighbours) row.push_back(shown(joined(norm.feeds), kNeighbourWidth));
    rows.push_back(std::move(row));
  }
  return aligned(rows, left);
}

// The update weights: one line where all norms agree, else a line per kind with the norms that have it.
std::string conventions_text(const Inspected& inspected) {
  std::map<std::string, std::vector<std::string>> kinds;
  for (const NormRecord& norm : inspected.table.norms) kinds[norm.conventions()].push_back(norm.name);
  std::string text;
  for (const auto& [words, names] : kinds) {
    const std::string whose = kinds.size() > 1 ? shown(joined(names), 60) + ": " : "";
    const bool known = words != NormRecord{.weight_known = false}.conventions();
    text += whose + (known ? "" : "update weight and kind of running variance: ") + words + "\n";
  }
  return text;
}

std::string totals_text(const tools::ChannelTotals& t) {
  std::string text = fmt::format("{} batch norms, {} channels: {} with a variance at or below eps", t.norms, t.channels,
                                 t.variance_below_eps);
  const auto add = [&](int64_t count, const char* what) {
    if (count > 0) text += fmt::format(", {} {}", count, what);
  };
  add(t.variance_below_1e10, "below 1e-10");
  add(t.variance_denormal, "denormal");
  add(t.variance_zero, "zero");
  add(t.variance_negative, "negative");
  add(t.gamma_near_0, "with |gamma| below 0.001");
  add(t.not_finite, "not finite");
  return text + "\n";
}

std::string finding_line(const Finding& f, const std::string& norm, const std::string& reason,
                         const Terminal& terminal) {
  const tools::LintRule& rule = tools::lint_rule(f.code);
  const std::string severity = fmt::format("{:<7}", tools::name_of(f.severity));
  return fmt::format("{}  {}  {}: {}{}; {}\n",
                     f.severity == tools::Severity::kError     ? terminal.red(severity)
                     : f.severity == tools::Severity::kWarning ? terminal.bold(severity)
                                                               : terminal.dim(severity),
                     f.code, norm, rule.title, reason.empty() ? "" : ": " + reason, rule.remedy);
}

std::string findings_text(const std::vector<Finding>& findings, const Terminal& terminal, bool verbose) {
  if (findings.empty()) return "no findings\n";
  std::map<std::string, std::vector<const Finding*>> alike;
  for (const Finding& f : findings) alike[f.code].push_back(&f);
  std::string text;
  for (const tools::Severity severity : {tools::Severity::kError, tools::Severity::kWarning, tools::Severity::kInfo}) {
    for (const Finding& f : findings) {
      if (f.severity != severity) continue;
      const auto& group = alike[f.code];
      if (verbose || severity != tools::Severity::kInfo || group.size() <= kMostAlike) {
        text +=
            finding_line(f, f.norm.empty() ? "the model" : shown(f.norm, kNameWidth), shown(f.reason, 400), terminal);
      } else if (group.front() == &f) {
        text += finding_line(
            f, fmt::format("{} norms ({}, ...; all with --verbose)", group.size(), shown(f.norm, kNameWidth)), "",
            terminal);
      }
    }
  }
  return text;
}

std::string observations_text(const Inspected& inspected) {
  std::vector<NormDistance> distances;
  for (const tools::NormObservation& observation : inspected.observations) distances.push_back(observation.distance);
  std::string text =
      fmt::format("\nstored statistics against those of {} examples:\n", inspected.examples) + text_of(distances);
  if (inspected.accuracies) {
    text += fmt::format("accuracy {} with the stored statistics, {} with those of the batches\n",
                        percent_text(inspected.accuracies->stored), percent_text(inspected.accuracies->batch));
  }
  return text;
}

}  // namespace

std::string shown(const std::string& text, size_t most) {
  std::string clean = text;
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return clean.size() <= most ? clean : ".." + clean.substr(clean.size() - (most - 2));
}

nlohmann::ordered_json inspect_json(const Inspected& inspected) {
  nlohmann::ordered_json json = json_result();
  json["model"] = inspected.path;
  json["format"] = inspected.table.format;
  json["running_statistics"] = inspected.running_statistics;
  json["norms"] = nlohmann::ordered_json::array();
  for (const NormRecord& norm : inspected.table.norms) json["norms"].push_back(json_of(norm));
  json["totals"] = json_of(tools::totals_of(inspected.table));
  json["findings"] = nlohmann::ordered_json::array();
  for (const Finding& f : inspected.findings) {
    json["findings"].push_back({{"code", f.code},
                                {"severity", tools::name_of(f.severity)},
                                {"norm", f.norm.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(f.norm)},
                                {"reason", f.reason},
                                {"channels", f.channels},
                                {"remedy", tools::lint_rule(f.code).remedy}});
  }
  json["notes"] = inspected.table.notes;
  json["data"] = nullptr;
  if (inspected.examples == 0) return json;
  std::vector<NormDistance> distances;
  for (const tools::NormObservation& observation : inspected.observations) distances.push_back(observation.distance);
  json["data"] = {{"examples", inspected.examples}, {"norms", cli::json_of(distances)}};
  for (size_t i = 0; i < inspected.observations.size(); ++i)
    json["data"]["norms"][i]["constant_channels"] = inspected.observations[i].constant_channels;
  if (inspected.accuracies) {
    json["data"]["accuracy"] = {{"stored", inspected.accuracies->stored}, {"batch", inspected.accuracies->batch}};
  }
  return json;
}

std::string inspect_csv(const Inspected& inspected) {
  std::string text =
      "name,channels,eps,new_batch_weight,batches,gamma_min,gamma_max,beta_min,beta_max,mean_min,mean_max,var_min,var_"
      "max,"
      "fed_by,feeds,findings\n";
  for (const NormRecord& norm : inspected.table.norms) {
    text += fmt::format("{},{},{},{},{}", csv_field(norm.name), norm.channels, norm.eps,
                        norm.new_batch_weight ? fmt::format("{}", *norm.new_batch_weight) : "",
                        norm.batches ? fmt::format("{}", *norm.batches) : "");
    for (const auto* values : {&norm.gamma, &norm.beta, &norm.mean, &norm.var}) {
      const tools::Range range = tools::range_of(*values);
      text += values->empty() ? ",," : fmt::format(",{},{}", range.low, range.high);
    }
    std::vector<std::string> codes;
    for (const Finding& f : inspected.findings) {
      if (f.norm == norm.name) codes.push_back(f.code);
    }
    text += fmt::format(",{},{},{}\n", csv_field(joined(norm.fed_by)), csv_field(joined(norm.feeds)),
                        fmt::join(codes, " "));
  }
  return text;
}

std::string inspect_text(const Inspected& inspected, const Terminal& terminal, bool verbose) {
  if (inspected.table.norms.empty()) return "the network has no batch norm\n";
  std::string text = inspected.table.format + "\n";
  if (!inspected.statistics_text.empty()) text += "running statistics: " + inspected.statistics_text + "\n";
  text += conventions_text(inspected);
  for (const std::string& note : inspected.table.notes) text += note + "\n";
  text += "\n" + norm_rows(inspected) + "\n" + totals_text(tools::totals_of(inspected.table));
  if (inspected.examples > 0) text += observations_text(inspected);
  return text + "\n" + findings_text(inspected.findings, terminal, verbose);
}

}  // namespace evenkeel::cli
