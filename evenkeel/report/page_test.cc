#include "evenkeel/report/page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "evenkeel/report/assets.h"

namespace evenkeel::report {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

Page page_with(Item item) {
  return {.title = "a title", .sections = {{.title = "a section", .items = {std::move(item)}}}};
}

// What lies between two texts; "" when they are not there.
std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t from = text.find(begin);
  if (from == text.npos) return "";
  const size_t to = text.find(end, from + begin.size());
  return to == text.npos ? "" : text.substr(from + begin.size(), to - from - begin.size());
}

nlohmann::json charts_of(const std::string& html) {
  return nlohmann::json::parse(between(html, "id=\"charts\">", "</script>"));
}

size_t count_of(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + 1)) ++count;
  return count;
}

// y = 0, 0, ..., with a peak, a trough and a gap at places of no importance.
Series long_series(size_t count) {
  Series s{.name = "long"};
  for (size_t i = 0; i < count; ++i) {
    s.x.push_back(static_cast<double>(i));
    s.y.push_back(0);
  }
  s.y[count / 3] = 7;
  s.y[count / 2] = -5;
  s.y[count / 2 + 1234] = kNaN;
  return s;
}

TEST(Page, needs_nothing_from_outside) {
  const std::string html = html_of(page_with(Chart{.series = {{.name = "s", .x = {1, 2}, .y = {3, 4}}}}));
  EXPECT_THAT(html, HasSubstr("Chart.js v3"));
  EXPECT_THAT(html, HasSubstr("MIT License"));
  // The chart library names addresses, in its comments and messages; nothing of the page fetches one.
  std::string ours = html;
  const std::string library(chart_js());
  ours.erase(ours.find(library), library.size());
  for (const char* text : {"http:", "https:", "src=", "<link", "@import", "url("})
    EXPECT_THAT(ours, Not(HasSubstr(text)));
}

TEST(Page, text_never_becomes_markup) {
  const std::string bad = "</script><script>alert('1')</script><img src=\"x\" onerror=\"1\">&<!--";
  Page page{.title = bad, .subtitle = bad};
  page.sections.push_back(
      {.title = bad,
       .items = {
           Paragraph{bad}, Paragraph{bad, true}, Verdict{Tone::kBad, bad, bad},
           Chart{.title = bad,
                 .x_label = bad,
                 .y_label = bad,
                 .kind = ChartKind::kBar,
                 .categories = {bad},
                 .series = {{.name = bad, .x = {0}, .y = {1}}},
                 .note = bad},
           Table{.title = bad, .header = {bad}, .rows = {{bad}}},
           Heatmap{.title = bad, .row_label = bad, .column_label = bad, .rows = {bad}, .columns = {bad}, .values = {1}},
           Gallery{.title = bad, .pictures = {{.png_base64 = "iVBORw0KGgo" + bad, .caption = bad}}}}});
  const std::string html = html_of(page);
  EXPECT_THAT(html, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(html, Not(HasSubstr("<img")));  // its PNG is none
  EXPECT_THAT(html, Not(HasSubstr("<!--")));
  EXPECT_EQ(count_of(html, "<script"), 3u);  // data, library, ours
  EXPECT_EQ(count_of(html, "</script"), 3u);
  EXPECT_EQ(charts_of(html)[0]["series"][0]["name"], bad);
  EXPECT_EQ(charts_of(html)[0]["categories"][0], bad);
}

TEST(Page, numbers_of_a_chart_stand_in_a_folded_table_and_gaps_are_words_there) {
  const Chart chart{.x_label = "step",
                    .series = {{.name = "one", .x = {1, 2, 3}, .y = {0.5, kNaN, kInfinity}},
                               {.name = "two", .x = {2}, .y = {8}, .low = {7}, .high = {9.25}}}};
  const std::string html = html_of(page_with(chart));
  const std::string details = between(html, "<details>", "</details>");
  EXPECT_THAT(details, HasSubstr("<th class=\"number\">step</th><th class=\"number\">one</th>"));
  EXPECT_THAT(details,
              HasSubstr("<td class=\"number\">1</td><td class=\"number\">0.5</td><td></td><td></td><td></td>"));
  EXPECT_THAT(details,
              HasSubstr("<td class=\"number\">NaN</td><td class=\"number\">8</td><td class=\"number\">7</td><td "
                        "class=\"number\">9.25</td>"));
  EXPECT_THAT(details, HasSubstr("Infinity"));
  const nlohmann::json one = charts_of(html)[0]["series"][0];
  EXPECT_EQ(one["y"], nlohmann::json::parse("[0.5, null, null]"));
  EXPECT_FALSE(one.contains("low"));
  EXPECT_EQ(charts_of(html)[0]["series"][1]["high"], nlohmann::json::parse("[9.25]"));
}

TEST(Page, values_of_zero_and_less_are_gaps_on_a_logarithmic_axis) {
  const std::string html =
      html_of(page_with(Chart{.log_x = true, .log_y = true, .series = {{.x = {0, 1, 2, 3}, .y = {1, 0, -1, 2}}}}));
  const nlohmann::json s = charts_of(html)[0]["series"][0];
  EXPECT_EQ(s["x"], nlohmann::json::parse("[1.0, 2.0, 3.0]"));
  EXPECT_EQ(s["y"], nlohmann::json::parse("[null, null, 2.0]"));
}

TEST(Page, a_long_series_is_thinned_to_its_extremes_and_gaps_and_says_so) {
  const std::string html = html_of(page_with(Chart{.series = {long_series(100000)}}));
  const nlohmann::json s = charts_of(html)[0]["series"][0];
  ASSERT_LE(s["x"].size(), kMostPoints);
  ASSERT_EQ(s["x"].size(), s["y"].size());
  int peaks = 0, troughs = 0, gaps = 0;
  for (size_t i = 0; i < s["y"].size(); ++i) {
    if (s["y"][i].is_null()) {
      ++gaps;
      EXPECT_EQ(s["x"][i], 51234);
      continue;
    }
    peaks += s["y"][i] == 7 && s["x"][i] == 33333;
    troughs += s["y"][i] == -5 && s["x"][i] == 50000;
    if (i == 0) continue;
    EXPECT_LT(s["x"][i - 1], s["x"][i]);
  }
  EXPECT_EQ(peaks, 1);
  EXPECT_EQ(troughs, 1);
  EXPECT_EQ(gaps, 1);
  EXPECT_THAT(html, HasSubstr(" of 100000 points are drawn"));
  EXPECT_LT(html.size(), 500000u);
  EXPECT_EQ(count_of(csv_of(Chart{.series = {long_series(100000)}}), "\n"), 100001u);
}

TEST(Page, a_thinned_band_keeps_its_widest_places) {
  Series s = long_series(20000);
  s.low.assign(s.y.size(), -1);
  s.high.assign(s.y.size(), 1);
  s.low[777] = -100;
  s.high[888] = 100;
  const nlohmann::json drawn = charts_of(html_of(page_with(Chart{.series = {s}})))[0]["series"][0];
  EXPECT_LE(drawn["x"].size(), kMostPoints);
  EXPECT_EQ(*std::min_element(drawn["low"].begin(), drawn["low"].end()), -100);
  EXPECT_EQ(*std::max_element(drawn["high"].begin(), drawn["high"].end()), 100);
}

TEST(Page, points_are_drawn_along_the_axis_and_ones_without_a_place_are_not) {
  const Chart chart{.series = {{.x = {3, kNaN, 1, 2, 4}, .y = {30, 0, 10, 20}}}};  // of different length, too
  const nlohmann::json s = charts_of(html_of(page_with(chart)))[0]["series"][0];
  EXPECT_EQ(s["x"], nlohmann::json::parse("[1.0, 2.0, 3.0]"));
  EXPECT_EQ(s["y"], nlohmann::json::parse("[10.0, 20.0, 30.0]"));
}

TEST(Page, a_chart_without_points_says_so_in_place_of_a_canvas) {
  const std::string html = html_of(page_with(Chart{.title = "empty", .series = {{.name = "none"}}}));
  EXPECT_THAT(html, HasSubstr("No values."));
  EXPECT_THAT(html, Not(HasSubstr("<canvas")));
  EXPECT_THAT(html, Not(HasSubstr("Chart.js v3")));  // no chart, no library
}

TEST(Page, cells_that_read_as_numbers_are_set_right) {
  const std::string html =
      html_of(page_with(Table{.header = {"a"}, .rows = {{"12", "-1.5e3", "97.10 %", "NaN", "12 s", "", "0x3"}}}));
  EXPECT_THAT(html,
              HasSubstr("<td class=\"number\">12</td><td class=\"number\">-1.5e3</td><td class=\"number\">97.10 %</td>"
                        "<td class=\"number\">NaN</td><td>12 s</td><td></td><td>0x3</td>"));
}

TEST(Page, a_table_of_names_and_values_without_a_header_is_a_list_of_facts) {
  const std::string html = html_of(page_with(Table{.rows = {{"steps", "12"}, {"data", "<b>"}}}));
  EXPECT_THAT(html, HasSubstr("<div><dt>steps</dt><dd>12</dd></div>\n<div><dt>data</dt><dd>&lt;b&gt;</dd></div>"));
  EXPECT_THAT(html, Not(HasSubstr("<table")));
}

TEST(Page, a_heatmap_shades_by_the_root_of_the_share_and_marks_values_below_zero) {
  const Heatmap map{.rows = {"a", "b"}, .columns = {"c", "d"}, .values = {100, 1, -25, kNaN}};
  const std::string html = html_of(page_with(map));
  EXPECT_THAT(html, HasSubstr("<td class=\"above strong\" style=\"--share:1.00\">100</td>"));
  EXPECT_THAT(html, HasSubstr("<td class=\"above\" style=\"--share:0.10\">1</td>"));
  EXPECT_THAT(html, HasSubstr("<td class=\"below\" style=\"--share:0.50\">-25</td>"));
  EXPECT_THAT(html, HasSubstr("<td class=\"none\">NaN</td>"));
}

TEST(Page, pictures_are_part_of_the_page) {
  const std::string html = html_of(page_with(Gallery{.pictures = {{"iVBORw0KGgoAAA==", "a cat"}, {"", "a row"}}}));
  EXPECT_THAT(html, HasSubstr("<img src=\"data:image/png;base64,iVBORw0KGgoAAA==\" alt=\"a cat\">"));
  EXPECT_EQ(count_of(html, "<img"), 1u);
  EXPECT_THAT(html, HasSubstr("a row"));
}

TEST(Csv, has_every_number_to_the_bit_and_quotes_names) {
  const Chart chart{.series = {{.name = "a,\"b\"", .x = {1, 2}, .y = {0.1, kNaN}},
                               {.name = "c", .x = {1e7}, .y = {-kInfinity}, .low = {1.0 / 3}, .high = {2}}}};
  EXPECT_EQ(csv_of(chart),
            "series,x,y,low,high\n"
            "\"a,\"\"b\"\"\",1,0.1,,\n"
            "\"a,\"\"b\"\"\",2,NaN,,\n"
            "c,10000000,-Infinity,0.3333333333333333,2\n");
  EXPECT_EQ(
      csv_of(Chart{.kind = ChartKind::kBar, .categories = {"x", "y,z"}, .series = {{.name = "s", .x = {1}, .y = {4}}}}),
      "series,x,y\ns,\"y,z\",4\n");
  EXPECT_EQ(csv_of(Heatmap{.rows = {"a"}, .columns = {"b", "c"}, .values = {1, 2}}),
            "row,column,value\na,b,1\na,c,2\n");
}

TEST(Csv, every_chart_of_a_page_has_a_file_of_its_own_name) {
  Page page;
  page.sections.push_back({.title = "Layer ../bn1",
                           .items = {Chart{.title = "Mean & Variance"}, Paragraph{"p"},
                                     Chart{.title = "Mean & Variance"}, Heatmap{.title = "Map"}}});
  std::vector<std::string> names;
  for (const TextFile& file : csv_files_of(page)) names.push_back(file.name);
  EXPECT_THAT(names, testing::ElementsAre("layer-..-bn1.mean-variance.csv", "layer-..-bn1.mean-variance-2.csv",
                                          "layer-..-bn1.map.csv"));
}

}  // namespace
}  // namespace evenkeel::report
