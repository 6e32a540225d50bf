#include "evenkeel/report/page.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/report/html.h"
#include "evenkeel/report/assets.h"

namespace evenkeel::report {
namespace {

using Json = nlohmann::ordered_json;

void replace_all(std::string& text, std::string_view what, std::string_view by) {
  for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
}

// A script as it may stand in a page: what would end the element, or begin a comment, means the same with a backslash in a literal.
std::string script_element(std::string_view code) {
  std::string text(code);
  replace_all(text, "</script", "<\\/script");
  replace_all(text, "<!--", "<\\!--");
  return "<script>" + text + "</script>\n";
}

// ---- numbers -----------------------------------------------------------------------------------------------------------------------

std::string word_of(double value) {
  if (std::isnan(value)) return "NaN";
  return value > 0 ? "Infinity" : "-Infinity";
}

std::string shown(double value) { return std::isfinite(value) ? fmt::format("{:.6g}", value) : word_of(value); }

// To the digits that a drawing needs; null is a gap.
Json drawn(double value, bool logarithmic, int digits) {
  if (!std::isfinite(value) || (logarithmic && value <= 0)) return nullptr;
  const std::string text = fmt::format("{:.{}g}", value, digits);
  double rounded = value;
  std::from_chars(text.data(), text.data() + text.size(), rounded);
  return rounded;
}

bool reads_as_number(std::string_view text) {
  if (text == "NaN" || text == "Infinity" || text == "-Infinity") return true;
  for (const std::string_view unit : {" %", "%"}) {
    if (text.ends_with(unit)) {
      text.remove_suffix(unit.size());
      break;
    }
  }
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return !text.empty() && error == std::errc() && end == text.data() + text.size();
}

// ---- series ------------------------------------------------------------------------------------------------------------------------

size_t length_of(const Series& s) { return std::min(s.x.size(), s.y.size()); }
bool has_band(const Series& s) {
  return !s.low.empty() && s.low.size() >= length_of(s) && s.high.size() >= length_of(s);
}

Series chosen(const Series& s, const std::vector<size_t>& points) {
  Series out{.name = s.name, .dashed = s.dashed};
  for (const size_t i : points) {
    out.x.push_back(s.x[i]);
    out.y.push_back(s.y[i]);
    if (!has_band(s)) continue;
    out.low.push_back(s.low[i]);
    out.high.push_back(s.high[i]);
  }
  return out;
}

// The points with a place on the x axis, along it.
Series in_order(const Series& s, const Chart& chart) {
  std::vector<size_t> points;
  for (size_t i = 0; i < length_of(s); ++i) {
    if (std::isfinite(s.x[i]) && !(chart.log_x && s.x[i] <= 0)) points.push_back(i);
  }
  if (chart.kind != ChartKind::kScatter)
    std::stable_sort(points.begin(), points.end(), [&](size_t a, size_t b) { return s.x[a] < s.x[b]; });
  return chosen(s, points);
}

// Of every stretch of a long series its least and greatest values, and a gap if it has one.
Series thinned(const Series& s) {
  const size_t count = s.x.size();
  if (count <= kMostPoints) return s;
  const size_t kept_of_each = has_band(s) ? 5 : 3, stretches = kMostPoints / kept_of_each;
  std::vector<size_t> points;
  for (size_t k = 0; k < stretches; ++k) {
    const size_t begin = count * k / stretches, end = count * (k + 1) / stretches;
    std::set<size_t> kept;
    const auto keep_greatest = [&](const std::vector<double>& values, double sign) {
      size_t best = end;
      for (size_t i = begin; i < end; ++i) {
        if (std::isfinite(values[i]) && (best == end || sign * values[i] > sign * values[best])) best = i;
      }
      if (best < end) kept.insert(best);
    };
    keep_greatest(s.y, 1);
    keep_greatest(s.y, -1);
    if (has_band(s)) {
      keep_greatest(s.high, 1);
      keep_greatest(s.low, -1);
    }
    for (size_t i = begin; i < end; ++i) {
      if (std::isfinite(s.y[i])) continue;
      kept.insert(i);
      break;
    }
    points.insert(points.end(), kept.begin(), kept.end());
  }
  return chosen(s, points);
}

std::string x_text(const Chart& chart, double x) {
  const bool is_index = x >= 0 && x < static_cast<double>(chart.categories.size()) && x == std::floor(x);
  if (chart.kind == ChartKind::kBar && is_index) return chart.categories[static_cast<size_t>(x)];
  return std::isfinite(x) ? fmt::format("{:.10g}", x) : word_of(x);
}

// ---- items -------------------------------------------------------------------------------------------------------------------------

std::string table_element(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<div class=\"wide\"><table>";
  // A column of numbers has its name above them, to the right.
  const auto is_number_column = [&](size_t c) {
    bool any = false;
    for (const auto& row : rows) {
      if (c >= row.size() || row[c].empty()) continue;
      if (!reads_as_number(row[c])) return false;
      any = true;
    }
    return any;
  };
  if (!header.empty()) {
    html += "<thead><tr>";
    for (size_t c = 0; c < header.size(); ++c)
      html += fmt::format("<th{}>{}</th>", is_number_column(c) ? " class=\"number\"" : "", escaped(header[c]));
    html += "</tr></thead>";
  }
  html += "<tbody>\n";
  for (const auto& row : rows) {
    html += "<tr>";
    for (const std::string& cell : row)
      html += fmt::format("<td{}>{}</td>", reads_as_number(cell) ? " class=\"number\"" : "", escaped(cell));
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>";
}

std::string facts_element(const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<dl class=\"facts\">\n";
  for (const auto& row : rows)
    html += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>\n", escaped(row[0]), escaped(row[1]));
  return html + "</dl>";
}

std::string folded(const std::string& title, const std::string& content) {
  return fmt::format("<details><summary>{}</summary>{}</details>\n", escaped(title), content);
}

// The drawn points of all series side by side, a row for every x.
std::string table_of_points(const Chart& chart, const std::vector<Series>& all) {
  std::vector<std::string> header = {chart.kind == ChartKind::kBar ? "" : chart.x_label};
  size_t columns = 0;
  for (const Series& s : all) {
    header.push_back(s.name);
    ++columns;
    if (!has_band(s)) continue;
    header.push_back("low");
    header.push_back("high");
    columns += 2;
  }
  std::multimap<double, std::vector<std::string>> rows;  // several of one x where a series has it several times
  size_t column = 1;
  for (const Series& s : all) {
    const size_t wide = has_band(s) ? 3 : 1;
    for (size_t i = 0; i < s.x.size(); ++i) {
      auto row = rows.lower_bound(s.x[i]);
      const auto last = rows.upper_bound(s.x[i]);
      while (row != last && !row->second[column].empty()) ++row;
      if (row == last) {
        row = rows.emplace(s.x[i], std::vector<std::string>(columns + 1));
        row->second[0] = x_text(chart, s.x[i]);
      }
      row->second[column] = shown(s.y[i]);
      if (wide == 1) continue;
      row->second[column + 1] = shown(s.low[i]);
      row->second[column + 2] = shown(s.high[i]);
    }
    column += wide;
  }
  std::vector<std::vector<std::string>> cells;
  cells.reserve(rows.size());
  for (auto& [x, row] : rows) cells.push_back(std::move(row));
  return table_element(header, cells);
}

Json json_of(const Chart& chart, const std::vector<Series>& all) {
  const char* const kinds[] = {"line", "scatter", "bar"};
  Json series = Json::array();
  for (const Series& s : all) {
    Json x = Json::array(), y = Json::array(), low = Json::array(), high = Json::array();
    for (size_t i = 0; i < s.x.size(); ++i) {
      x.push_back(drawn(s.x[i], chart.log_x, 10));
      y.push_back(drawn(s.y[i], chart.log_y, 6));
      if (!has_band(s)) continue;
      low.push_back(drawn(s.low[i], chart.log_y, 6));
      high.push_back(drawn(s.high[i], chart.log_y, 6));
    }
    Json one = {{"name", s.name}, {"dashed", s.dashed}, {"x", std::move(x)}, {"y", std::move(y)}};
    if (has_band(s)) {
      one["low"] = std::move(low);
      one["high"] = std::move(high);
    }
    series.push_back(std::move(one));
  }
  return {{"kind", kinds[static_cast<size_t>(chart.kind)]},
          {"x_label", chart.x_label},
          {"y_label", chart.y_label},
          {"log_x", chart.log_x},
          {"log_y", chart.log_y},
          {"categories", chart.categories},
          {"series", std::move(series)}};
}

// Writes items one after the other; what the script draws is gathered in `charts`.
class Writer {
 public:
  std::string section(const Section& section) {
    std::string html = fmt::format("<section id=\"s{}\"><h2>{}</h2>\n", ++sections_, escaped(section.title));
    bool in_charts = false;  // charts that follow each other stand side by side where there is room
    for (const Item& item : section.items) {
      const bool is_chart = std::holds_alternative<Chart>(item);
      if (is_chart != in_charts) html += is_chart ? "<div class=\"charts\">\n" : "</div>\n";
      in_charts = is_chart;
      html += std::visit([&](const auto& typed) { return element(typed); }, item);
    }
    return html + (in_charts ? "</div>\n" : "") + "</section>\n";
  }

  const Json& charts() const { return charts_; }

 private:
  static std::string element(const Paragraph& p) {
    const char* const tag = p.code ? "pre" : "p";
    return fmt::format("<{0}>{1}</{0}>\n", tag, escaped(p.text));
  }

  static std::string element(const Verdict& v) {
    const char* const tones[] = {"good", "mixed", "bad"};
    return fmt::format("<p class=\"verdict {}\"><strong>{}</strong>{}</p>\n", tones[static_cast<size_t>(v.tone)],
                       escaped(v.word), escaped(v.text));
  }

  static std::string element(const Table& t) {
    const bool facts =
        t.header.empty() && std::all_of(t.rows.begin(), t.rows.end(), [](const auto& row) { return row.size() == 2; });
    const std::string table = facts ? facts_element(t.rows) : table_element(t.header, t.rows);
    if (t.folded) return folded(t.title, table);
    return (t.title.empty() ? "" : "<h3>" + escaped(t.title) + "</h3>") + table + "\n";
  }

  std::string element(const Chart& chart) {
    std::string html = fmt::format("<figure class=\"chart\"><figcaption>{}</figcaption>", escaped(chart.title));
    std::vector<Series> all;
    size_t points = 0;
    std::string note = chart.note;
    const auto add_note = [&](const std::string& text) { note += (note.empty() ? "" : " ") + text; };
    for (const Series& s : chart.series) {
      const Series whole = in_order(s, chart);
      all.push_back(thinned(whole));
      points += whole.x.size();
      if (all.back().x.size() < whole.x.size())
        add_note(fmt::format("Of {}, {} of {} points are drawn: the least and the greatest of each stretch.", s.name,
                             all.back().x.size(), whole.x.size()));
    }
    if (points == 0) return html + "<p class=\"faint\">No values.</p></figure>\n";
    html += fmt::format(
        "<div class=\"box\" data-chart=\"{}\"><canvas role=\"img\" aria-label=\"{}\"></canvas></div><div "
        "class=\"legend\"></div>",
        charts_.size(), escaped(chart.title));
    charts_.push_back(json_of(chart, all));
    if (!note.empty()) html += "<p class=\"note\">" + escaped(note) + "</p>";
    return html + folded("Numbers", table_of_points(chart, all)) + "</figure>\n";
  }

  static std::string element(const Heatmap& h) {
    const size_t rows = h.rows.size(), columns = h.columns.size();
    EK_ASSERT(h.values.size() == rows * columns);
    double most = 0;
    for (const double v : h.values) {
      if (std::isfinite(v)) most = std::max(most, std::abs(v));
    }
    std::string html = fmt::format("<figure><h3>{}</h3><div class=\"wide\"><table class=\"heat\"><thead><tr><th></th>",
                                   escaped(h.title));
    for (const std::string& name : h.columns) html += "<th><span>" + escaped(name) + "</span></th>";
    html += "</tr></thead><tbody>\n";
    for (size_t r = 0; r < rows; ++r) {
      html += "<tr><th>" + escaped(h.rows[r]) + "</th>";
      for (size_t c = 0; c < columns; ++c) {
        const double v = h.values[r * columns + c];
        if (!std::isfinite(v) || v == 0) {
          html += fmt::format("<td class=\"none\">{}</td>", std::isfinite(v) ? "0" : word_of(v));
          continue;
        }
        // The root, so that few among many are still seen.
        const double share = std::sqrt(std::abs(v) / most);
        const char* strong = share > 0.6 ? " strong" : "";
        html += fmt::format("<td class=\"{}{}\" style=\"--share:{:.2f}\">{}</td>", v < 0 ? "below" : "above", strong,
                            share, shown(v));
      }
      html += "</tr>\n";
    }
    html += "</tbody></table></div>";
    if (!h.row_label.empty() || !h.column_label.empty())
      html +=
          fmt::format("<p class=\"note\">Rows: {}. Columns: {}.</p>", escaped(h.row_label), escaped(h.column_label));
    return html + "</figure>\n";
  }

  static std::string element(const Gallery& g) {
    std::string html = g.title.empty() ? "" : "<h3>" + escaped(g.title) + "</h3>\n";
    html += "<div class=\"pictures\">\n";
    for (const Picture& picture : g.pictures) {
      html += "<figure>";
      // Only what is the text of a PNG goes into an attribute.
      constexpr const char* kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=";
      const std::string& png = picture.png_base64;
      if (png.starts_with("iVBORw0KGgo") && png.find_first_not_of(kBase64) == png.npos)
        html += fmt::format("<img src=\"data:image/png;base64,{}\" alt=\"{}\">", png, escaped(picture.caption));
      html += fmt::format("<figcaption>{}</figcaption></figure>\n", escaped(picture.caption));
    }
    return html + "</div>\n";
  }

  int sections_ = 0;
  Json charts_ = Json::array();
};

std::string contents_of(const Page& page) {
  if (page.sections.size() < 3) return "";
  std::string html = "<nav>";
  for (size_t i = 0; i < page.sections.size(); ++i)
    html += fmt::format("<a href=\"#s{}\">{}</a>", i + 1, escaped(page.sections[i].title));
  return html + "</nav>\n";
}

// ---- CSV ---------------------------------------------------------------------------------------------------------------------------

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string csv_number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : word_of(value); }

// "Loss and accuracy" -> "loss-and-accuracy".
std::string file_name_part(const std::string& title) {
  std::string name;
  for (const char c : title) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_';
    if (plain)
      name += c;
    else if (c >= 'A' && c <= 'Z')
      name += static_cast<char>(c - 'A' + 'a');
    else if (!name.empty() && name.back() != '-')
      name += '-';
  }
  while (!name.empty() && name.back() == '-') name.pop_back();
  constexpr size_t kMost = 80;  // far below what a file system allows, twice and with an ending
  return name.substr(0, kMost);
}

}  // namespace

void add_chart(Section& section, Chart chart) {
  std::erase_if(chart.series, [](const Series& s) { return s.x.empty(); });
  if (!chart.series.empty()) section.items.emplace_back(std::move(chart));
}

std::string html_of(const Page& page) {
  Writer writer;
  std::string sections;
  for (const Section& section : page.sections) sections += writer.section(section);
  std::string charts = writer.charts().dump(-1, ' ', false, Json::error_handler_t::replace);
  replace_all(charts, "<", "\\u003c");  // nothing in it ends the element

  std::string html = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n";
  html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  html += fmt::format("<title>{}</title>\n<style>\n{}</style></head><body>\n", escaped(page.title), page_css());
  html += fmt::format("<h1>{}</h1>\n<p class=\"faint\">{}</p>\n", escaped(page.title), escaped(page.subtitle));
  html += contents_of(page);
  html += "<noscript><p>Charts are drawn by a script; the tables below them have their numbers.</p></noscript>\n";
  html += "<main>\n" + sections + "</main>\n";
  if (!writer.charts().empty()) {
    html += "<script type=\"application/json\" id=\"charts\">" + charts + "</script>\n";
    html += script_element(chart_js()) + script_element(page_js());
  }
  return html + "</body></html>\n";
}

std::string csv_of(const Chart& chart) {
  const bool bands = std::any_of(chart.series.begin(), chart.series.end(), has_band);
  std::string csv = bands ? "series,x,y,low,high\n" : "series,x,y\n";
  for (const Series& s : chart.series) {
    for (size_t i = 0; i < length_of(s); ++i) {
      const bool is_name = chart.kind == ChartKind::kBar;
      csv += fmt::format("{},{},{}", csv_cell(s.name), is_name ? csv_cell(x_text(chart, s.x[i])) : csv_number(s.x[i]),
                         csv_number(s.y[i]));
      if (has_band(s))
        csv += fmt::format(",{},{}", csv_number(s.low[i]), csv_number(s.high[i]));
      else if (bands)
        csv += ",,";
      csv += "\n";
    }
  }
  return csv;
}

std::string csv_of(const Heatmap& h) {
  EK_ASSERT(h.values.size() == h.rows.size() * h.columns.size());
  std::string csv = "row,column,value\n";
  for (size_t r = 0; r < h.rows.size(); ++r) {
    for (size_t c = 0; c < h.columns.size(); ++c)
      csv += fmt::format("{},{},{}\n", csv_cell(h.rows[r]), csv_cell(h.columns[c]),
                         csv_number(h.values[r * h.columns.size() + c]));
  }
  return csv;
}

std::vector<TextFile> csv_files_of(const Page& page) {
  std::vector<TextFile> files;
  std::set<std::string> taken;
  const auto add = [&](const Section& section, const std::string& title, std::string text) {
    const std::string stem = file_name_part(section.title) + "." + file_name_part(title);
    std::string name = stem + ".csv";
    for (int i = 2; !taken.insert(name).second; ++i) name = fmt::format("{}-{}.csv", stem, i);
    files.push_back({name, std::move(text)});
  };
  for (const Section& section : page.sections) {
    for (const Item& item : section.items) {
      if (const auto* chart = std::get_if<Chart>(&item)) add(section, chart->title, csv_of(*chart));
      if (const auto* heatmap = std::get_if<Heatmap>(&item)) add(section, heatmap->title, csv_of(*heatmap));
    }
  }
  return files;
}

}  // namespace evenkeel::report
