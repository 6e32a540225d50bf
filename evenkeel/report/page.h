// A page of charts, tables, pictures and text as one HTML file that needs nothing else: the chart library is part of the program.
//
//   Page page{.title = "cnn on fashion-mnist"};
//   page.sections.push_back({.title = "Loss", .items = {Chart{.title = "loss", .series = {{.name = "train", .x = x, .y = y}}}}});
//   write_file(path, html_of(page));
//
// Numbers that are not finite are gaps in a chart and words in a table. Text is escaped; nothing of it can become markup.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace evenkeel::report {

struct Series {
  std::string name = {};
  std::vector<double> x = {}, y = {};       // of the same length
  std::vector<double> low = {}, high = {};  // of the same length, or empty: a band around y (a spread, percentiles)
  bool dashed = false;
};
enum class ChartKind { kLine, kScatter, kBar };
struct Chart {
  std::string title = {};
  std::string x_label = {}, y_label = {};
  bool log_x = false, log_y = false;  // values of 0 and less are gaps there
  ChartKind kind = ChartKind::kLine;
  std::vector<std::string> categories = {};  // kBar: names of x = 0, 1, 2, ...
  std::vector<Series> series = {};
  std::string note = {};  // below it
};
// Cells that read as numbers are set right. Without a header, and with two cells in each row: names and values, side by side where there is room.
struct Table {
  std::string title = {};
  std::vector<std::string> header = {};
  std::vector<std::vector<std::string>> rows = {};
  bool folded = false;  // shown on a click: the numbers behind a chart
};
// A matrix of counts or shares, drawn by colour with the numbers in it.
struct Heatmap {
  std::string title = {}, row_label = {}, column_label = {};
  std::vector<std::string> rows = {}, columns = {};
  std::vector<double> values = {};  // [rows][columns]
};
struct Picture {
  std::string png_base64 = {};
  std::string caption = {};
};
struct Gallery {
  std::string title = {};
  std::vector<Picture> pictures = {};
};
struct Paragraph {
  std::string text = {};
  bool code = false;  // a command to copy
};
// A badge beside a sentence: a verdict.
enum class Tone { kGood, kMixed, kBad };
struct Verdict {
  Tone tone = Tone::kMixed;
  std::string word = {}, text = {};
};
using Item = std::variant<Paragraph, Verdict, Chart, Table, Heatmap, Gallery>;

struct Section {
  std::string title = {};
  std::vector<Item> items = {};
};
// Without the series that have no points; a chart of none is not added.
void add_chart(Section& section, Chart chart);

struct Page {
  std::string title = {}, subtitle = {};
  std::vector<Section> sections = {};
};

// Charts come with a folded table of their numbers. Readable on a phone and in print, light and dark.
// Of a longer series at most kMostPoints are drawn, extremes and gaps among them, and the chart says so; csv_of has all.
std::string html_of(const Page& page);
inline constexpr size_t kMostPoints = 600;

// The numbers of a chart: a header, then one line for each value of x that a series has: "series,x,y[,low,high]".
std::string csv_of(const Chart& chart);
// The numbers of a matrix: "row,column,value".
std::string csv_of(const Heatmap& heatmap);

// All charts and heatmaps of a page as CSV files, in their order: names such as "loss-and-accuracy.loss.csv", no two the same.
struct TextFile {
  std::string name, text;
};
std::vector<TextFile> csv_files_of(const Page& page);

}  // namespace evenkeel::report
