#include "bench/step_report.h"

#include <algorithm>

#include <fmt/format.h>

namespace evenkeel::bench {
namespace {

using Rows = std::vector<std::vector<std::string>>;

// Rows of equal length, the first one the heading; the first two columns are text.
std::string table(const Rows& rows, bool markdown) {
  std::vector<size_t> width(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line = markdown ? "|" : "";
    for (size_t i = 0; i < rows[r].size(); ++i) {
      const std::string cell =
          i < 2 ? fmt::format("{:<{}}", rows[r][i], width[i]) : fmt::format("{:>{}}", rows[r][i], width[i]);
      line += markdown ? " " + cell + " |" : (i == 0 ? "" : "  ") + cell;
    }
    text += line + "\n";
    if (r > 0 || !markdown) continue;
    text += "|";
    for (size_t i = 0; i < width.size(); ++i)
      text += std::string(width[i] + (i < 2 ? 2 : 1), '-') + (i < 2 ? "|" : ":|");
    text += "\n";
  }
  return text;
}

std::string title(const std::string& words, bool markdown) {
  return fmt::format("{}{}\n\n", markdown ? "### " : "", words);
}

// A figure of a result, "-" where it is null or missing.
std::string cell(const Json& from, const char* key, double scale, int digits) {
  if (!from.contains(key) || from[key].is_null()) return "-";
  return fmt::format("{:.{}f}", from[key].get<double>() * scale, digits);
}

std::string pair(const Json& from, const char* ours, const char* theirs, double scale) {
  return cell(from, ours, scale, 0) + " / " + cell(from, theirs, scale, 0);
}

// Network by network what the training step is held against.
std::string result_table(const Json& document, bool markdown) {
  const bool first_step = document.contains("first_step");
  Rows rows{{"network", "threads", "step over oneDNN floor", "images/s over libtorch", "over libtorch, tuned heap",
             "peak memory, MB, evenkeel / libtorch"}};
  if (first_step) rows[0].emplace_back("first step, ms, evenkeel / libtorch");
  for (const Json& r : document["results"]) {
    std::vector<std::string> row{r["network"],
                                 std::to_string(r["threads"].get<int>()),
                                 cell(r, "over_floor", 1, 2),
                                 cell(r, "over_libtorch", 1, 2),
                                 cell(r, "over_libtorch_tuned", 1, 2),
                                 pair(r, "peak_memory_bytes", "libtorch_peak_memory_bytes", 1e-6)};
    if (first_step) row.push_back(pair(r, "first_step_ms", "libtorch_first_step_ms", 1));
    rows.push_back(std::move(row));
  }
  return table(rows, markdown) + "\n";
}

// One row for each contender of the results with that heap and number of threads; "" without any.
std::string contender_table(const Json& document, const std::string& heap, int threads, bool markdown) {
  Rows rows{{"model", "", "images/s", "quartiles", "step, ms", "evenkeel is", "slices kept", "switches in them"}};
  for (const Json& result : document["results"]) {
    if (result["threads"] != threads) continue;
    for (const Json& part : result["heaps"]) {
      if (part["heap"] != heap) continue;
      const double ours = part["contenders"][0]["images_per_s"];
      for (const Json& c : part["contenders"]) {
        const bool own = c["side"] == "evenkeel";
        rows.push_back({own ? result["network"].get<std::string>() : "", c["name"], cell(c, "images_per_s", 1, 0),
                        cell(c, "images_per_s_low", 1, 0) + "-" + cell(c, "images_per_s_high", 1, 0),
                        cell(c, "step_ms", 1, 2),
                        own ? "" : fmt::format("{:.2f}x", ours / c["images_per_s"].get<double>()),
                        fmt::format("{}/{}", c["slices_kept"].get<int>(), c["slices"].get<int>()),
                        fmt::format("{}", c["switches_in_kept"].get<int>())});
      }
    }
  }
  if (rows.size() == 1) return "";
  return title(fmt::format("{} heap, {} thread{}", heap, threads, threads == 1 ? "" : "s"), markdown) +
         table(rows, markdown) + "\n";
}

std::string step_tables(const Json& document, bool markdown) {
  std::string text = result_table(document, markdown);
  for (const int threads : document["settings"]["threads"]) {
    for (const char* heap : {"default", "tuned"}) text += contender_table(document, heap, threads, markdown);
  }
  return text;
}

std::string first_step_table(const Json& document, bool markdown) {
  Rows rows{{"model", "", "data", "threads", "first step done after, ms", "lowest", "peak RSS, MB"}};
  for (const Json& r : document["first_step"]) {
    rows.push_back({r["model"], r["name"], r["data"], std::to_string(r["threads"].get<int>()),
                    cell(r, "first_step_ms", 1, 0), cell(r, "lowest_ms", 1, 0), cell(r, "peak_rss_bytes", 1e-6, 0)});
  }
  return table(rows, markdown) +
         "\nevenkeel train reads, standardizes and checkpoints as for any user; libtorch has its batch in memory and "
         "writes nothing.\n\n";
}

std::string memory_table(const Json& document, bool markdown) {
  Rows rows{{"network", "threads", "batch", "peak memory of evenkeel, MB", "of libtorch, MB"}};
  for (const Json& r : document["memory"]) {
    rows.push_back({r["network"], std::to_string(r["threads"].get<int>()), std::to_string(r["batch"].get<int64_t>()),
                    cell(r, "peak_memory_bytes", 1e-6, 0), cell(r, "libtorch_peak_memory_bytes", 1e-6, 0)});
  }
  return table(rows, markdown) + "\nOne batch in memory, a few steps, a process of its own for each.\n\n";
}

std::string growth_table(const Json& growth, bool markdown) {
  Rows rows{{"network", "batch", "evenkeel, us/image", "libtorch, us/image", "peak memory of evenkeel, MB",
             "of libtorch, MB"}};
  for (const Json& point : growth["points"]) {
    rows.push_back({growth["network"], std::to_string(point["batch"].get<int64_t>()), cell(point, "us_per_image", 1, 1),
                    cell(point, "libtorch_us_per_image", 1, 1), cell(point, "peak_memory_bytes", 1e-6, 0),
                    cell(point, "libtorch_peak_memory_bytes", 1e-6, 0)});
  }
  return table(rows, markdown) + fmt::format("\nMemory per image by least squares, KB: evenkeel {}, libtorch {}.\n\n",
                                             cell(growth, "memory_bytes_per_image", 1e-3, 1),
                                             cell(growth, "libtorch_memory_bytes_per_image", 1e-3, 1));
}

std::string heading(const Json& document) {
  const Json& settings = document["settings"];
  const Json& versions = document["versions"];
  const std::string peer = versions["peer"], blas = versions["blas"];
  std::string threads;
  for (const int count : settings["threads"]) threads += (threads.empty() ? "" : " and ") + std::to_string(count);
  std::string text = fmt::format(
      "{}, {} of {} cores; {}, {}\n", document["machine"]["processor"].get<std::string>(), threads,
      document["machine"]["cores"].get<int>(),
      settings["batch"].is_null() ? "each network's own batch" : fmt::format("batch {}", settings["batch"].get<int>()),
      settings["optimizer"].get<std::string>());
  text += fmt::format("evenkeel {}; {}\n", versions["evenkeel"].get<std::string>(),
                      peer.empty() ? "no libtorch" : peer + " with " + (blas.empty() ? "no BLAS" : blas));
  if (settings["precision"] != "fp32")
    text += fmt::format("evenkeel stores images in {}\n", settings["precision"].get<std::string>());
  if (settings["floor_precision"] != "fp32")
    text += fmt::format("the floor computes in {}\n", settings["floor_precision"].get<std::string>());
  for (const Json& warning : document["warnings"]) text += "warning: " + warning.get<std::string>() + "\n";
  return text + "\n";
}

}  // namespace

std::string as_text(const Json& document, bool markdown) {
  std::string text = heading(document);
  if (document.contains("results")) text += step_tables(document, markdown);
  if (document.contains("first_step")) text += first_step_table(document, markdown);
  if (document.contains("memory")) text += memory_table(document, markdown);
  if (document.contains("growth")) text += growth_table(document["growth"], markdown);
  return text;
}

}  // namespace evenkeel::bench
