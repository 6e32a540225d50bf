#include "evenkeel/tools/norm_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "evenkeel/report/html.h"

namespace evenkeel::tools {
namespace {

constexpr const char* kStyle = R"(
:root { --page: #ffffff; --text: #1b1f24; --faint: #6a737d; --line: #d5dae0; --box: #3b6fb6; --mark: #0b2d5c;
        --info: #57606a; --warning: #8a5a00; --error: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --text: #e4e7eb; --faint: #9aa4af; --line: #333a42; --box: #5d93dd; --mark: #cfe2ff;
          --info: #9aa4af; --warning: #e0b050; --error: #ff8a80; } }
body { background: var(--page); color: var(--text); font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .faint { color: var(--faint); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; } .axis { stroke: var(--line); } .whole { stroke: var(--box); stroke-width: 1.5; }
.half { fill: var(--box); } .middle { stroke: var(--mark); stroke-width: 2; }
.info { color: var(--info); } .warning { color: var(--warning); font-weight: 600; } .error { color: var(--error); font-weight: 700; }
@media print { body { margin: 0; max-width: none; } }
)";

constexpr double kWidth = 150, kHeight = 18, kMargin = 4;

using report::escaped;

// A column of drawings on one axis.
struct Column {
  const char* title;
  std::function<std::vector<double>(const NormRecord&)> values;
  bool logarithmic;  // 0 and less are drawn at the left end
  double low = 0, high = 1;

  double place(double value) const {
    const double x = logarithmic ? (value > 0 ? std::log10(value) : low) : value;
    const double share = high > low ? std::clamp((x - low) / (high - low), 0.0, 1.0) : 0.5;
    return kMargin + share * (kWidth - 2 * kMargin);
  }
};

void fit_axis(const NormTable& table, Column& column) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const NormRecord& norm : table.norms) {
    for (const double value : column.values(norm)) {
      if (!std::isfinite(value) || (column.logarithmic && value <= 0)) continue;
      const double x = column.logarithmic ? std::log10(value) : value;
      low = std::min(low, x);
      high = std::max(high, x);
    }
  }
  if (low > high) return;
  column.low = low;
  column.high = high;
}

std::string drawing(const Column& column, const std::vector<double>& values, const std::string& norm) {
  const Range range = range_of(values);
  if (std::isnan(range.median)) return "<span class=\"faint\">none</span>";
  const std::string label =
      fmt::format("{} of {}: {:.3g} to {:.3g}, half of the channels {:.3g} to {:.3g}, median {:.3g}", column.title,
                  norm, range.low, range.high, range.first_quarter, range.third_quarter, range.median);
  const double middle = kHeight / 2, left = column.place(range.low), right = column.place(range.high);
  const double first = column.place(range.first_quarter), third = column.place(range.third_quarter);
  std::string svg = fmt::format(
      R"(<svg width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" aria-label="{2}"><title>{2}</title>)", kWidth,
      kHeight, escaped(label));
  if (!column.logarithmic && column.low < 0 && column.high > 0)
    svg += fmt::format(R"(<line class="axis" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>)", column.place(0), kHeight);
  svg += fmt::format(R"(<line class="whole" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>)", left,
                     std::max(right, left + 1), middle, middle);
  svg += fmt::format(R"(<rect class="half" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="1"/>)", first, middle - 4,
                     std::max(third - first, 1.5), 8);
  svg += fmt::format(R"(<line class="middle" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/></svg>)",
                     column.place(range.median), middle - 6, middle + 6);
  return svg;
}

std::string axis_text(const Column& column) {
  const auto number = [&](double x) { return fmt::format("{:.3g}", column.logarithmic ? std::pow(10.0, x) : x); };
  return fmt::format("{}<br><span class=\"faint\">{} to {}{}</span>", column.title, number(column.low),
                     number(column.high), column.logarithmic ? ", log" : "");
}

std::string table_of_norms(const NormTable& table) {
  std::vector<Column> columns = {{"gamma", [](const NormRecord& n) { return n.gamma; }, false},
                                 {"beta", [](const NormRecord& n) { return n.beta; }, false},
                                 {"mean", [](const NormRecord& n) { return n.mean; }, false},
                                 {"variance", [](const NormRecord& n) { return n.var; }, true},
                                 {"|folded scale|",
                                  [](const NormRecord& n) {
                                    std::vector<double> scale = n.scale();
                                    for (double& s : scale) s = std::abs(s);
                                    return scale;
                                  },
                                  true}};
  std::string html = "<div class=\"wide\"><table><thead><tr><th>norm</th><th>channels</th><th>eps</th>";
  for (Column& column : columns) {
    fit_axis(table, column);
    html += "<th>" + axis_text(column) + "</th>";
  }
  html += "<th>fed by</th><th>feeds</th></tr></thead><tbody>\n";
  for (const NormRecord& norm : table.norms) {
    html += fmt::format("<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{:.3g}{}</td>",
                        escaped(norm.name), norm.channels, norm.eps, norm.eps_known ? "" : "?");
    for (const Column& column : columns) html += "<td>" + drawing(column, column.values(norm), norm.name) + "</td>";
    html += fmt::format("<td>{}</td><td>{}</td></tr>\n", escaped(fmt::format("{}", fmt::join(norm.fed_by, ", "))),
                        escaped(fmt::format("{}", fmt::join(norm.feeds, ", "))));
  }
  return html + "</tbody></table></div>\n";
}

std::string table_of_findings(const std::vector<Finding>& findings) {
  if (findings.empty()) return "<p>None.</p>\n";
  std::string html =
      "<div class=\"wide\"><table><thead><tr><th>severity</th><th>code</th><th>norm</th><th>finding</th><th>what to "
      "do</th></tr></thead><tbody>\n";
  for (const Finding& f : findings) {
    const LintRule& rule = lint_rule(f.code);
    html += fmt::format("<tr><td class=\"{0}\">{0}</td><td>{1}</td><td>{2}</td><td>{3}: {4}</td><td>{5}</td></tr>\n",
                        name_of(f.severity), f.code, escaped(f.norm.empty() ? "the model" : f.norm),
                        escaped(rule.title), escaped(f.reason), escaped(rule.remedy));
  }
  return html + "</tbody></table></div>\n";
}

}  // namespace

Range range_of(std::vector<double> values) {
  std::erase_if(values, [](double value) { return !std::isfinite(value); });
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  if (values.empty()) return {kNone, kNone, kNone, kNone, kNone};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
  };
  return {values.front(), at(0.25), at(0.5), at(0.75), values.back()};
}

std::string norm_page(const NormTable& table, const std::vector<Finding>& findings, const std::string& title) {
  const ChannelTotals totals = totals_of(table);
  std::string html = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n";
  html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  html += fmt::format("<title>{}: batch norms</title>\n<style>{}</style></head><body>\n", escaped(title), kStyle);
  html += fmt::format("<h1>{}</h1>\n<p class=\"faint\">{}</p>\n", escaped(title), escaped(table.format));
  html += fmt::format(
      "<p>{} batch norms, {} channels: {} with a variance at or below eps ({} below 1e-10), {} with gamma near "
      "0, {} not finite.</p>\n",
      totals.norms, totals.channels, totals.variance_below_eps, totals.variance_below_1e10, totals.gamma_near_0,
      totals.not_finite);
  for (const std::string& note : table.notes) html += fmt::format("<p class=\"faint\">{}</p>\n", escaped(note));
  html += "<h2>Findings</h2>\n" + table_of_findings(findings);
  html +=
      "<h2>Norms</h2>\n<p class=\"faint\">A line from the least to the greatest value, a box around the middle half of "
      "the "
      "channels, a mark at the median; each column has one axis.</p>\n";
  return html + table_of_norms(table) + "</body></html>\n";
}

}  // namespace evenkeel::tools
