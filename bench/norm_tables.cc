#include "bench/norm_tables.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include <fmt/format.h>

namespace evenkeel::bench {
namespace {

using Json = nlohmann::ordered_json;
using Arrangements = std::vector<NormArrangement>;

constexpr auto kDense = NormArrangement::kDense;
constexpr auto kNchw = NormArrangement::kNchw;
constexpr auto kNhwc = NormArrangement::kNhwc;
constexpr auto kBlocked = NormArrangement::kBlocked;

// So small that the start of threads and the barrier between the passes decide: it has a row of its own and is in no
// mean.
constexpr const char* kTinyShape = "64x128";

// What the contenders of one case have in common.
struct Case {
  int threads;
  NormOperation operation;
  bool larger;
  std::string shape;
  bool relu;

  auto key() const { return std::tie(threads, operation, larger, shape, relu); }
  bool operator<(const Case& other) const { return key() < other.key(); }
};

Case case_of(const NormResult& r) {
  return {r.problem.threads, r.problem.operation, r.larger, r.shape, r.problem.relu};
}

std::string words_of(const Case& c, NormArrangement arrangement) {
  return fmt::format("{} {}{}{}", name_of(arrangement), c.shape, c.relu ? " relu" : "", c.larger ? " larger" : "");
}

// The measurements by case: tables ask for the fastest of some libraries and arrangements.
class Measurements {
 public:
  explicit Measurements(const std::vector<NormResult>& results) {
    for (const NormResult& r : results) {
      results_[case_of(r)].push_back(&r);
      threads_.insert(r.problem.threads);
    }
  }
  // Cases in order, with what was measured in each.
  const std::map<Case, std::vector<const NormResult*>>& cases() const { return results_; }
  const std::set<int>& threads() const { return threads_; }

  // Null where none of them was measured.
  const NormResult* fastest(const Case& c, const std::vector<std::string>& libraries,
                            const Arrangements& arrangements) const {
    const auto found = results_.find(c);
    if (found == results_.end()) return nullptr;
    const NormResult* best = nullptr;
    for (const NormResult* r : found->second) {
      if (!contains(libraries, r->library) || !contains(arrangements, r->problem.arrangement)) continue;
      if (best == nullptr || r->time.median_s < best->time.median_s) best = r;
    }
    return best;
  }

 private:
  template <class T>
  static bool contains(const std::vector<T>& list, const T& value) {
    return std::find(list.begin(), list.end(), value) != list.end();
  }

  std::map<Case, std::vector<const NormResult*>> results_;
  std::set<int> threads_;
};

struct Ratio {
  double value;
  std::string words;
};

enum class Fold { kGeometricMean, kWorst };

// The figure of some ratios, or none where there are none.
std::optional<Figure> figure_of(Figure figure, const std::vector<Ratio>& ratios, Fold fold) {
  if (ratios.empty()) return std::nullopt;
  double logs = 0;
  const Ratio* worst = &ratios[0];
  for (const Ratio& ratio : ratios) {
    logs += std::log(ratio.value);
    const bool lower = ratio.value < worst->value;
    if (figure.goal == Goal::kAtMost ? ratio.value > worst->value : lower) worst = &ratio;
  }
  figure.cases = static_cast<int>(ratios.size());
  figure.worst = worst->value;
  figure.worst_case = worst->words;
  figure.value = fold == Fold::kWorst ? worst->value : std::exp(logs / static_cast<double>(ratios.size()));
  return figure;
}

// ---- time over the limit

struct LimitRow {
  const char* name;
  NormOperation operation;
  Arrangements arrangements;
  double target_l3, target_larger;
};

const std::vector<LimitRow>& limit_rows() {
  static const std::vector<LimitRow> rows = {
      {"inference", NormOperation::kInference, {kDense, kNchw, kNhwc, kBlocked}, 1.10, 1.05},
      {"forward, NCHW and blocked", NormOperation::kForward, {kNchw, kBlocked}, 1.7, 1.25},
      {"forward, NHWC and dense", NormOperation::kForward, {kNhwc, kDense}, 2.2, 1.6},
      {"backward, NCHW and blocked", NormOperation::kBackward, {kNchw, kBlocked}, 1.9, 1.5},
      {"backward, NHWC and dense", NormOperation::kBackward, {kNhwc, kDense}, 1.9, 1.85},
  };
  return rows;
}

FigureTable limit_table(const Measurements& all) {
  FigureTable table{"Time over the limit, without relu and without [64,128]", "time / limit", {}};
  for (const LimitRow& row : limit_rows()) {
    for (const bool larger : {false, true}) {
      for (const int threads : all.threads()) {
        std::vector<Ratio> ratios;
        for (const auto& [c, measured] : all.cases()) {
          if (c.operation != row.operation || c.larger != larger || c.threads != threads || c.relu) continue;
          if (c.shape == kTinyShape) continue;
          for (const NormArrangement arrangement : row.arrangements) {
            const NormResult* ours = all.fastest(c, {"evenkeel"}, {arrangement});
            if (ours != nullptr) ratios.push_back({ours->time.median_s / ours->limit_s, words_of(c, arrangement)});
          }
        }
        Figure figure{.name = row.name, .data = larger ? "larger" : "L3", .threads = threads};
        figure.target = larger ? row.target_larger : row.target_l3;
        figure.goal = Goal::kAtMost;
        if (auto made = figure_of(figure, ratios, Fold::kGeometricMean)) table.figures.push_back(*made);
      }
    }
  }
  return table;
}

FigureTable relu_table(const Measurements& all) {
  constexpr double kAllowed = 1.05;
  FigureTable table{"Time with relu fused over the time without, without [64,128]", "with / without", {}};
  for (const LimitRow& row : limit_rows()) {
    for (const int threads : all.threads()) {
      std::vector<Ratio> ratios;
      for (const auto& [c, measured] : all.cases()) {
        if (c.operation != row.operation || c.threads != threads || !c.relu || c.shape == kTinyShape) continue;
        Case without = c;
        without.relu = false;
        for (const NormArrangement arrangement : row.arrangements) {
          const NormResult* fused = all.fastest(c, {"evenkeel"}, {arrangement});
          const NormResult* plain = all.fastest(without, {"evenkeel"}, {arrangement});
          if (fused != nullptr && plain != nullptr)
            ratios.push_back({fused->time.median_s / plain->time.median_s, words_of(c, arrangement)});
        }
      }
      Figure figure{.name = row.name, .data = "all", .threads = threads};
      figure.target = kAllowed;
      figure.goal = Goal::kAtMost;
      if (auto made = figure_of(figure, ratios, Fold::kGeometricMean)) table.figures.push_back(*made);
    }
  }
  return table;
}

// ---- peers

// The fastest of `theirs` is held against the fastest of `ours`.
struct Pair {
  Arrangements theirs, ours;
};

struct PeerRow {
  std::string name;
  std::vector<std::string> libraries;
  NormOperation operation;
  std::vector<Pair> pairs;
  double target;  // 0: none
  Fold fold = Fold::kGeometricMean;
  bool tiny = false;  // of kTinyShape alone
};

std::vector<PeerRow> peer_rows() {
  constexpr auto kInference = NormOperation::kInference;
  constexpr auto kForward = NormOperation::kForward;
  constexpr auto kBackward = NormOperation::kBackward;
  const Pair nchw{{kNchw}, {kNchw}}, nhwc{{kNhwc}, {kNhwc}}, dense{{kDense}, {kDense}};
  // oneDNN's users choose nChw16c for its speed, and so may ours.
  const Pair any_nchw{{kNchw, kBlocked}, {kNchw, kBlocked}};
  const std::vector<std::string> torch{"libtorch"}, dnnl{"oneDNN"}, both{"oneDNN", "libtorch"};

  std::vector<PeerRow> rows = {
      {"libtorch, NCHW forward", torch, kForward, {nchw}, 7},
      {"libtorch, NCHW backward", torch, kBackward, {nchw}, 3},
      {"libtorch, NHWC forward", torch, kForward, {nhwc}, 2.1},
      {"libtorch, NHWC backward", torch, kBackward, {nhwc}, 2.1},
      {"libtorch, dense forward", torch, kForward, {dense}, 1.6},
      {"libtorch, dense backward", torch, kBackward, {dense}, 2.3},
      {"libtorch, inference", torch, kInference, {nchw, nhwc, dense}, 1.6},
  };
  struct Named {
    const char* name;
    NormOperation operation;
    double target;
  };
  const Named operations[] = {
      {"forward", kForward, 1.2}, {"backward", kBackward, 1.05}, {"inference", kInference, 1.05}};
  for (const auto& [name, operation, target] : operations)
    rows.push_back({fmt::format("oneDNN, plain NCHW and dense, {}", name), dnnl, operation, {nchw, dense}, 5});
  for (const auto& [name, operation, target] : operations)
    rows.push_back({fmt::format("oneDNN, any layout, {}", name), dnnl, operation, {any_nchw, nhwc}, target});
  for (const auto& [name, operation, target] : operations) {
    rows.push_back(
        {fmt::format("oneDNN, any layout, {}, lowest", name), dnnl, operation, {any_nchw, nhwc}, 0.92, Fold::kWorst});
  }
  for (const auto& [name, operation, target] : operations) {
    rows.push_back({fmt::format("  its NCHW or nChw16c against our NCHW, {}", name),
                    dnnl,
                    operation,
                    {{{kNchw, kBlocked}, {kNchw}}},
                    0});
    rows.push_back(
        {fmt::format("  its nChw16c against our blocked, {}", name), dnnl, operation, {{{kBlocked}, {kBlocked}}}, 0});
    rows.push_back({fmt::format("  its NHWC against our NHWC, {}", name), dnnl, operation, {nhwc}, 0});
  }
  for (const auto& [name, operation, target] : operations)
    rows.push_back(
        {fmt::format("best peer, [64,128] {}, lowest", name), both, operation, {dense}, 1, Fold::kWorst, true});
  return rows;
}

FigureTable peer_table(const Measurements& all) {
  FigureTable table{"Time of the peer over ours, with and without relu, all sizes", "peer / ours", {}};
  for (const PeerRow& row : peer_rows()) {
    for (const int threads : all.threads()) {
      std::vector<Ratio> ratios;
      for (const auto& [c, measured] : all.cases()) {
        if (c.operation != row.operation || c.threads != threads || (c.shape == kTinyShape) != row.tiny) continue;
        for (const Pair& pair : row.pairs) {
          const NormResult* theirs = all.fastest(c, row.libraries, pair.theirs);
          const NormResult* ours = all.fastest(c, {"evenkeel"}, pair.ours);
          if (theirs != nullptr && ours != nullptr)
            ratios.push_back({theirs->time.median_s / ours->time.median_s, words_of(c, theirs->problem.arrangement)});
        }
      }
      Figure figure{.name = row.name, .data = "all", .threads = threads, .target = row.target};
      figure.goal = row.target > 0 ? Goal::kAtLeast : Goal::kNone;
      if (auto made = figure_of(figure, ratios, row.fold)) table.figures.push_back(*made);
    }
  }
  return table;
}

std::string target_text(const Figure& figure) {
  if (figure.goal == Goal::kNone) return "";
  return fmt::format("{} {:.2f}", figure.goal == Goal::kAtMost ? "<=" : ">=", figure.target);
}

}  // namespace

std::string verdict_of(const Figure& figure) {
  if (figure.goal == Goal::kNone) return "";
  const double over = figure.goal == Goal::kAtMost ? figure.value / figure.target : figure.target / figure.value;
  if (over <= 1) return "met";
  return fmt::format("missed by {:.1f} %", 100 * (over - 1));
}

std::vector<FigureTable> norm_tables(const std::vector<NormResult>& results) {
  const Measurements all(results);
  std::vector<FigureTable> tables{limit_table(all), relu_table(all), peer_table(all)};
  std::erase_if(tables, [](const FigureTable& table) { return table.figures.empty(); });
  return tables;
}

std::string row_text(const std::vector<std::string>& cells, const std::vector<size_t>& widths, size_t text_columns,
                     bool markdown) {
  std::string line = markdown ? "|" : "";
  for (size_t i = 0; i < cells.size(); ++i) {
    const std::string cell =
        i < text_columns ? fmt::format("{:<{}}", cells[i], widths[i]) : fmt::format("{:>{}}", cells[i], widths[i]);
    line += markdown ? " " + cell + " |" : (i == 0 ? "" : "  ") + cell;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n";
}

std::string rule_text(const std::vector<size_t>& widths, size_t text_columns, bool markdown) {
  if (!markdown) return "";
  std::string line = "|";
  for (size_t i = 0; i < widths.size(); ++i) {
    const bool text = i < text_columns;
    line += std::string(widths[i] + (text ? 2 : 1), '-') + (text ? "|" : ":|");
  }
  return line + "\n";
}

std::string text_of(const FigureTable& table, bool markdown) {
  std::vector<std::vector<std::string>> rows{
      {"", "data", "threads", "cases", table.value_name, "target", "verdict", "worst", "worst case"}};
  for (const Figure& f : table.figures) {
    rows.push_back({f.name, f.data, std::to_string(f.threads), std::to_string(f.cases), fmt::format("{:.2f}", f.value),
                    target_text(f), verdict_of(f), fmt::format("{:.2f}", f.worst), f.worst_case});
  }
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  constexpr size_t kTextColumns = 2;
  std::string text = (markdown ? "### " : "") + table.title + "\n\n" +
                     row_text(rows[0], widths, kTextColumns, markdown) + rule_text(widths, kTextColumns, markdown);
  for (size_t i = 1; i < rows.size(); ++i) text += row_text(rows[i], widths, kTextColumns, markdown);
  return text + "\n";
}

Json json_of(const FigureTable& table) {
  Json figures = Json::array();
  for (const Figure& f : table.figures) {
    Json figure{{"name", f.name},   {"data", f.data},   {"threads", f.threads},      {"cases", f.cases},
                {"value", f.value}, {"worst", f.worst}, {"worst_case", f.worst_case}};
    if (f.goal != Goal::kNone) {
      figure["goal"] = f.goal == Goal::kAtMost ? "at most" : "at least";
      figure["target"] = f.target;
      figure["verdict"] = verdict_of(f);
    }
    figures.push_back(std::move(figure));
  }
  return {{"title", table.title}, {"value", table.value_name}, {"figures", std::move(figures)}};
}

Json json_of(const NormResult& r) {
  const NormProblem& p = r.problem;
  return {{"operation", name_of(p.operation)},
          {"layout", name_of(p.arrangement)},
          {"relu", p.relu},
          {"shape", r.shape},
          {"n", p.n},
          {"c", p.c},
          {"h", p.h},
          {"w", p.w},
          {"data", r.larger ? "larger" : "L3"},
          {"threads", p.threads},
          {"library", r.library},
          {"implementation", r.implementation},
          {"limit_ms", r.limit_s * 1e3},
          {"median_ms", r.time.median_s * 1e3},
          {"low_ms", r.time.low_s * 1e3},
          {"high_ms", r.time.high_s * 1e3},
          {"slices", r.time.slices},
          {"slices_kept", r.time.kept},
          {"switches_in_kept", r.time.switches_kept}};
}

}  // namespace evenkeel::bench
