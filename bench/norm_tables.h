// The figures that bench/norm sums its measurements up in, each beside what it is meant to reach.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/bench_timing.h"
#include "bench/norm_contender.h"

namespace evenkeel::bench {

// One contender in one case. Cases are equal when all but library, arrangement and what was measured is equal.
struct NormResult {
  NormProblem problem;  // as it ran: the batch may be scaled
  std::string shape;    // as it was asked for: "32x64x56x56"
  bool larger = false;  // larger than the caches; else all operands fit in the L3 cache
  std::string library;  // "evenkeel", ...
  std::string implementation;
  double limit_s = 0;  // the fastest copy of the same bytes
  Summary time;
};

enum class Goal { kNone, kAtMost, kAtLeast };

struct Figure {
  std::string name;
  std::string data;  // "L3", "larger", "all"
  int threads = 1;
  int cases = 0;
  double value = 0;  // the geometric mean of the cases, or the worst of them
  double target = 0;
  Goal goal = Goal::kNone;
  double worst = 0;
  std::string worst_case = {};
};

// "met", "missed by 4.2 %" (by so much our time is longer than the target allows), "" without a goal.
std::string verdict_of(const Figure& figure);

struct FigureTable {
  std::string title;
  std::string value_name;  // "time / limit", "peer / ours"
  std::vector<Figure> figures;
};

// All tables for which there is at least one case: time over the limit, the price of a fused relu, peers.
std::vector<FigureTable> norm_tables(const std::vector<NormResult>& results);

std::string text_of(const FigureTable& table, bool markdown);
nlohmann::ordered_json json_of(const FigureTable& table);
nlohmann::ordered_json json_of(const NormResult& result);

// Cells of fixed width: the first `text_columns` to the left, the others to the right.
std::string row_text(const std::vector<std::string>& cells, const std::vector<size_t>& widths, size_t text_columns,
                     bool markdown);
// The line between heading and rows in Markdown, "" otherwise.
std::string rule_text(const std::vector<size_t>& widths, size_t text_columns, bool markdown);

}  // namespace evenkeel::bench
