#include "evenkeel/data/csv.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <unordered_map>

#include "evenkeel/core/error.h"
#include "evenkeel/core/text.h"
#include "evenkeel/core/utf8.h"
#include "evenkeel/data/csv_header.h"
#include "evenkeel/data/csv_lines.h"
#include "evenkeel/data/rounding.h"

namespace evenkeel::data {
namespace {

constexpr size_t kMostClasses = 65536;  // more distinct labels than that are no classes

// Collects the rows of one table.
class TableBuilder {
 public:
  TableBuilder(const std::string& name, const CsvOptions& options) : name_(name), options_(options) {}

  void set_header(const Record& header, FirstLine kind, size_t columns);
  void add(const Record& record, int64_t line);
  CsvTable finish();

 private:
  std::string doubt_about_label() const;
  std::string column_text(size_t column) const {
    std::string text = "column " + std::to_string(column + 1);
    if (column < header_.size()) text += " (" + excerpt(header_[column]) + ")";
    return text;
  }
  [[noreturn]] void fail(int64_t line, size_t column, const std::string& what) const {
    throw FormatError(name_ + ": line " + std::to_string(line) + ", " + column_text(column) + ": " + what);
  }
  size_t find_label_column(size_t columns) const;
  std::string taken(const std::string& asked, const std::string& trained, bool also_by_number) const;
  size_t find_column(const std::string& wanted, size_t columns) const;
  bool is_feature(size_t column) const { return column != label_column_ && column != weight_column_; }
  float weight(const Field& field, int64_t line) const;
  bool header_counts() const;
  bool by_name() const;
  [[noreturn]] void refuse_ambiguous(const std::string& wanted, size_t named, size_t number) const;
  void place_features();
  [[noreturn]] void refuse_names(const std::vector<std::string>& missing, const std::vector<std::string>& more) const;
  float number(const Field& field, int64_t line, size_t column);
  size_t lone_column(size_t columns) const;
  void add_label(const Field& field, int64_t line);
  void name_integer_classes(const std::vector<int64_t>& values);
  void name_text_classes();
  void relabel(const std::vector<int32_t>& class_of);

  const std::string& name_;
  const CsvOptions& options_;
  std::vector<std::string> header_;          // empty: none
  std::vector<std::string> promised_names_;  // scikit-learn's first line: classes
  int64_t promised_rows_ = -1;
  size_t columns_ = 0, label_column_ = 0, weight_column_ = 0;  // the last two: columns_ where there is none
  int64_t absent_rows_ = 0;                                    // of weight 0
  std::optional<size_t> index_column_;  // without a name in the header, and its values count the rows so far
  std::vector<size_t> place_;           // of each column among the features; the label's means nothing
  CsvTable table_;
  RoundingWatch rounding_{0};
  std::unordered_map<std::string, int32_t> label_ids_;  // by first appearance
  std::vector<std::string> label_texts_;
};

// A header of numbers counts the columns and names nothing, but `others` of them: the label.
bool counts_only(const std::vector<std::string>& names, int64_t others) {
  const auto numbers =
      std::count_if(names.begin(), names.end(), [](const std::string& name) { return as_integer(name).has_value(); });
  return numbers > 0 && std::ssize(names) - numbers <= others;
}

// `'a', 'b', ...`: a few of many.
std::string quoted_list(const std::vector<std::string>& names) {
  constexpr size_t kMost = 6;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i > 0 ? ", " : "") + excerpt(names[i]);
  return names.size() > kMost ? text + " and " + std::to_string(names.size() - kMost) + " more" : text;
}

bool TableBuilder::header_counts() const {
  return counts_only(header_, (options_.labelled ? 1 : 0) + (table_.weight_column.empty() ? 0 : 1));
}

// Older versions mended names that were not UTF-8 with U+FFFD when the model was written: they are not known any more.
bool are_mended(const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(), [](const auto& n) { return n.find("\xef\xbf\xbd") != n.npos; });
}

bool TableBuilder::by_name() const {
  const auto& names = options_.feature_names;
  return !header_.empty() && !names.empty() && !header_counts() && !counts_only(names, 0) && !are_mended(names);
}

// Names become part of the model, whose file is UTF-8.
void require_utf8(const std::string& text, const std::string& place) {
  if (is_utf8(text)) return;
  throw FormatError(place + ": found " + with_bytes_written_out(text.substr(0, 40)) +
                    ", which is not UTF-8; save the file as UTF-8");
}

// The one column that is no feature of the model; the last column where there is no such one. The weight's is neither.
size_t TableBuilder::lone_column(size_t columns) const {
  const size_t last = columns > 1 && weight_column_ == columns - 1 ? columns - 2 : columns - 1;
  size_t found = columns, others = 0;
  for (size_t i = 0; by_name() && i < header_.size(); ++i) {
    const auto& names = options_.feature_names;
    if (i == weight_column_ || std::find(names.begin(), names.end(), header_[i]) != names.end()) continue;
    found = i;
    ++others;
  }
  return others == 1 ? found : last;
}

void TableBuilder::refuse_names(const std::vector<std::string>& missing, const std::vector<std::string>& more) const {
  std::string what = name_ + ": the header";
  if (!missing.empty()) what += " has no " + quoted_list(missing) + ", which the model needs";
  if (!more.empty()) {
    what +=
        std::string(missing.empty() ? "" : ", but") + " has " + quoted_list(more) + ", which the model does not know";
  }
  what += "; expected the columns " + quoted_list(options_.feature_names) + " in any order";
  what += options_.labelled ? " beside the label, which --label names" : "; leave the label and all other columns out";
  throw UsageError(what);
}

// Where the value of each column goes: to the place of its name in the model, or in the order of the file. Equal names keep their order.
void TableBuilder::place_features() {
  place_.assign(columns_, 0);
  std::vector<std::string> names, more;
  std::vector<bool> taken(options_.feature_names.size());
  for (size_t i = 0, next = 0; i < columns_; ++i) {
    if (!is_feature(i)) continue;
    place_[i] = next++;
    if (!by_name()) continue;
    size_t k = 0;
    while (k < taken.size() && (taken[k] || options_.feature_names[k] != header_[i])) ++k;
    if (k == taken.size()) {
      more.push_back(header_[i]);
    } else {
      taken[k] = true;
      place_[i] = k;
    }
  }
  std::vector<std::string> missing;
  for (size_t k = 0; by_name() && k < taken.size(); ++k) {
    if (!taken[k]) missing.push_back(options_.feature_names[k]);
  }
  if (!missing.empty() || !more.empty()) refuse_names(missing, more);
}

void TableBuilder::refuse_ambiguous(const std::string& wanted, size_t named, size_t number) const {
  const auto from_end = [&](size_t column) {
    return std::to_string(static_cast<int64_t>(column) - static_cast<int64_t>(columns_));
  };
  throw UsageError(name_ + ": the header counts the columns, so that '" + wanted + "' may mean column " +
                   std::to_string(named + 1) + ", which it calls so, or column " + std::to_string(number + 1) +
                   "; count from the end: " + from_end(named) + " or " + from_end(number));
}

size_t TableBuilder::find_label_column(size_t columns) const {
  return table_.label_column.empty() ? lone_column(columns) : find_column(table_.label_column, columns);
}

// What is asked for, or that of the training where this file has it.
std::string TableBuilder::taken(const std::string& asked, const std::string& trained, bool also_by_number) const {
  if (!asked.empty() || trained.empty()) return asked;
  const bool in_header = std::find(header_.begin(), header_.end(), trained) != header_.end();
  const bool names_nothing = header_.empty() || (header_counts() && !in_header);
  const bool is_number = as_integer(trained).has_value();
  if (in_header && !(is_number && header_counts())) return trained;
  return also_by_number && names_nothing && numbered_column(trained, columns_) ? trained : "";
}

size_t TableBuilder::find_column(const std::string& wanted, size_t columns) const {
  const auto found = std::find(header_.begin(), header_.end(), wanted);
  const std::optional<size_t> number = numbered_column(wanted, columns);
  if (found != header_.end()) {
    const auto named = static_cast<size_t>(found - header_.begin());
    if (number && *number != named && header_counts()) refuse_ambiguous(wanted, named, *number);
    return named;
  }
  if (number) return *number;
  const std::string close = closest_match(wanted, header_);
  throw UsageError(name_ + " has no column '" + wanted + "'; " +
                   (close.empty() ? "columns" : "did you mean '" + close + "'? Columns") + " are named by " +
                   (header_.empty() ? "" : "the header or by ") + "number, 1 to " + std::to_string(columns) +
                   (header_.empty() ? "; the file has no header" : ""));
}

void TableBuilder::set_header(const Record& header, FirstLine kind, size_t columns) {
  columns_ = columns;
  if (kind == FirstLine::kHeader) {
    for (size_t i = 0; i < header.size(); ++i) {
      const std::string text(trimmed(header[i].text));
      if (text.empty() && !index_column_) index_column_ = i;
      header_.push_back(text.empty() ? "column " + std::to_string(i + 1) : text);
    }
  } else if (kind == FirstLine::kScikitLearn) {
    promised_rows_ = *as_integer(header[0].text);
    for (size_t i = 2; i < header.size(); ++i) promised_names_.push_back(header[i].text);
  }
  table_.weight_column = taken(options_.weight_column, options_.trained_weight, false);
  if (options_.labelled) table_.label_column = taken(options_.label_column, options_.trained_label, true);
  weight_column_ = table_.weight_column.empty() ? columns : find_column(table_.weight_column, columns);
  label_column_ = options_.labelled ? find_label_column(columns) : columns;
  if (weight_column_ < columns && weight_column_ == label_column_) {
    throw UsageError(name_ + ": " + column_text(label_column_) +
                     " is asked for as the label and as the weight; expected two columns");
  }
  if (options_.labelled && columns < 2) {
    throw FormatError(name_ +
                      ": found one column in line 1, expected features and a label, "
                      "separated by comma, semicolon or tab");
  }
  table_.features = static_cast<int64_t>(columns) - (options_.labelled ? 1 : 0) - (weight_column_ < columns ? 1 : 0);
  if (table_.features < 1)
    throw FormatError(name_ + ": found no column beside the label and the weight, expected features");
  place_features();
  rounding_ = RoundingWatch(static_cast<size_t>(table_.features));
  table_.feature_names.resize(header_.empty() ? 0 : static_cast<size_t>(table_.features));
  for (size_t i = 0; i < header_.size(); ++i) {
    if (is_feature(i)) table_.feature_names[place_[i]] = header_[i];
  }
}

float TableBuilder::number(const Field& field, int64_t line, size_t column) {
  const auto value = as_number(field.text);
  if (is_missing(field.text)) {
    fail(line, column, "the value is missing (found " + excerpt(field.text) + "); fill it in or remove the line");
  }
  if (!value) {
    std::string hint;
    if (field.text.find(',') != std::string::npos) {
      hint = "; write decimals with a point";
    } else if (!options_.labelled) {
      hint = "; if this is the label column, leave it out";
    } else if (options_.label_column.empty()) {
      hint = "; if this is the label column, name it with --label";
    }
    fail(line, column, "found " + excerpt(field.text) + ", expected a number" + hint);
  }
  if (!(std::abs(*value) <= static_cast<double>(std::numeric_limits<float>::max()))) {
    fail(line, column, "found " + excerpt(field.text) + ", expected a finite 32-bit number");
  }
  rounding_.see(place_[column], *value);
  return static_cast<float>(*value);
}

float TableBuilder::weight(const Field& field, int64_t line) const {
  const auto value = as_number(field.text);
  const bool finite = value && std::abs(*value) <= static_cast<double>(std::numeric_limits<float>::max());
  if (!finite || *value < 0) {
    fail(line, weight_column_, "found the weight " + excerpt(field.text) + ", expected a finite number, not negative");
  }
  return static_cast<float>(*value);
}

void TableBuilder::add_label(const Field& field, int64_t line) {
  const std::string text(field.quoted ? std::string_view(field.text) : trimmed(field.text));
  if (text.empty() || (!field.quoted && is_missing(text))) {
    fail(line, label_column_,
         "the label is missing" + (text.empty()
                                       ? "; fill it in or remove the line"
                                       : " (found " + excerpt(text) +
                                             "); fill it in or remove the line, or quote it where it names a class"));
  }
  const auto [found, is_new] = label_ids_.try_emplace(text, static_cast<int32_t>(label_texts_.size()));
  if (is_new) {
    require_utf8(text, name_ + ": line " + std::to_string(line) + ", column " + std::to_string(label_column_ + 1));
    label_texts_.push_back(text);
  }
  if (label_texts_.size() > kMostClasses) {
    fail(line, label_column_,
         "the label column holds more than " + std::to_string(kMostClasses) +
             " different values, expected classes; is another column the "
             "label?");
  }
  table_.labels.push_back(found->second);
}

void TableBuilder::add(const Record& record, int64_t line) {
  if (record.size() != columns_) {
    throw FormatError(name_ + ": line " + std::to_string(line) + " has " + std::to_string(record.size()) +
                      " columns, expected " + std::to_string(columns_) + " as in the lines before");
  }
  if (weight_column_ < columns_) {
    const float own = weight(record[weight_column_], line);
    if (own == 0) {
      ++absent_rows_;
      return;
    }
    table_.weights.push_back(own);
  }
  const int64_t place = table_.rows + absent_rows_;
  if (index_column_ && as_integer(record[*index_column_].text) != place) index_column_.reset();
  const size_t row = table_.values.size();
  table_.values.resize(row + static_cast<size_t>(table_.features));
  for (size_t i = 0; i < record.size(); ++i) {
    if (i == label_column_) {
      add_label(record[i], line);
    } else if (i != weight_column_) {
      table_.values[row + place_[i]] = number(record[i], line, i);
    }
  }
  table_.lines.push_back(line);
  ++table_.rows;
}

// Renumbers the labels: class_of[id by first appearance] = class.
void TableBuilder::relabel(const std::vector<int32_t>& class_of) {
  for (int32_t& label : table_.labels) label = class_of[static_cast<size_t>(label)];
}

// Classes are the different integers in order; with scikit-learn's names they are its positions.
void TableBuilder::name_integer_classes(const std::vector<int64_t>& values) {
  std::vector<int32_t> class_of(values.size());
  if (!promised_names_.empty()) {
    for (size_t id = 0; id < values.size(); ++id) {
      if (values[id] < 0 || values[id] >= static_cast<int64_t>(promised_names_.size())) {
        const auto row = std::find(table_.labels.begin(), table_.labels.end(), id);
        fail(table_.lines[static_cast<size_t>(row - table_.labels.begin())], label_column_,
             "label " + std::to_string(values[id]) + " is outside 0.." + std::to_string(promised_names_.size() - 1) +
                 ", the classes that line 1 names");
      }
      class_of[id] = static_cast<int32_t>(values[id]);
    }
    table_.class_names = promised_names_;
    return relabel(class_of);
  }
  std::map<int64_t, int32_t> classes;
  for (const int64_t value : values) classes[value] = 0;
  for (auto& [value, index] : classes) {
    index = static_cast<int32_t>(table_.class_names.size());
    table_.class_names.push_back(std::to_string(value));
  }
  for (size_t id = 0; id < values.size(); ++id) class_of[id] = classes[values[id]];
  relabel(class_of);
}

void TableBuilder::name_text_classes() {
  table_.class_names = label_texts_;
  std::sort(table_.class_names.begin(), table_.class_names.end());
  std::vector<int32_t> class_of(label_texts_.size());
  for (size_t id = 0; id < label_texts_.size(); ++id) {
    const auto found = std::lower_bound(table_.class_names.begin(), table_.class_names.end(), label_texts_[id]);
    class_of[id] = static_cast<int32_t>(found - table_.class_names.begin());
  }
  relabel(class_of);
}

// Of a label column that nobody named: the last one, which many tables have the label in, and some have not.
std::string TableBuilder::doubt_about_label() const {
  if (!table_.label_column.empty()) return "";
  const std::string found = name_ + ": the label is taken from " + column_text(label_column_);
  constexpr std::array<std::string_view, 5> kUsual = {"label", "labels", "class", "target", "y"};
  const auto is_usual = [&](const std::string& name) {
    return std::find(kUsual.begin(), kUsual.end(), lower(name)) != kUsual.end();
  };
  const auto usual = std::find_if(header_.begin(), header_.end(), is_usual);
  if (usual != header_.end() && !is_usual(header_[label_column_])) {
    return found + ", the last one, and there is a column '" + *usual + "'; name the one that is meant: --label " +
           *usual;
  }
  constexpr int64_t kFewRows = 20;
  if (table_.rows >= kFewRows && 2 * static_cast<int64_t>(label_texts_.size()) > table_.rows) {
    return found + ", which holds " + std::to_string(label_texts_.size()) + " different values in " +
           std::to_string(table_.rows) + " rows; if another column is the label, name it with --label";
  }
  return "";
}

CsvTable TableBuilder::finish() {
  const int64_t rows = table_.rows + absent_rows_;
  if (promised_rows_ >= 0 && promised_rows_ != rows) {
    throw FormatError(name_ + ": line 1 promises " + std::to_string(promised_rows_) + " rows, found " +
                      std::to_string(rows) + "; is the file cut?");
  }
  if (table_.rows == 0 && absent_rows_ > 0) {
    throw FormatError(name_ + ": " + column_text(weight_column_) + ": all " + std::to_string(absent_rows_) +
                      " weights are 0, expected some above");
  }
  if (table_.rows == 0) throw FormatError(name_ + ": holds no rows, expected at least one");
  table_.doubt = rounding_.sentence(name_, [&](size_t feature) {
    size_t column = 0;
    while (!is_feature(column) || place_[column] != feature) ++column;
    return column_text(column);
  });
  if (!options_.labelled) return std::move(table_);
  if (index_column_ && is_feature(*index_column_) && table_.rows > 1) {
    table_.doubt += table_.doubt.empty() ? "" : "; ";
    table_.doubt += name_ + ": " + column_text(*index_column_) +
                    " has no name and counts the rows from 0, as the index of pandas, and is a feature here; remove "
                    "it: to_csv(..., index=False)";
  }
  if (const std::string doubt = doubt_about_label(); !doubt.empty()) {
    table_.doubt += table_.doubt.empty() ? doubt : "; " + doubt;
  }

  std::vector<int64_t> integers;
  size_t numbers = 0;
  std::string broken;  // a label that is a number but no integer
  for (const std::string& text : label_texts_) {
    if (const auto value = as_integer(text)) integers.push_back(*value);
    if (as_number(text)) ++numbers;
    if (as_number(text) && !as_integer(text) && broken.empty()) broken = text;
  }
  if (integers.size() == label_texts_.size()) {
    name_integer_classes(integers);
  } else if (numbers == label_texts_.size()) {
    throw FormatError(name_ + ": " + column_text(label_column_) + " holds numbers such as " + excerpt(broken) +
                      ", expected classes (whole numbers or words); choose another label column");
  } else {
    name_text_classes();
  }
  return std::move(table_);
}

// Drops a UTF-8 byte order mark; refuses UTF-16, which spreadsheets like to write.
std::string_view without_mark(std::string_view text, const std::string& name) {
  if (text.substr(0, 2) == "\xff\xfe" || text.substr(0, 2) == "\xfe\xff") {
    throw FormatError(name +
                      ": found the mark of UTF-16 at offset 0, expected UTF-8; save it as "
                      "UTF-8");
  }
  if (text.substr(0, 3) == "\xef\xbb\xbf") text.remove_prefix(3);
  return text;
}

}  // namespace

CsvTable parse_csv(std::string_view text, const std::string& name, const CsvOptions& options) {
  text = without_mark(text, name);
  Records records(text, sniff_delimiter(text), name);
  Record first, second;
  int64_t first_line = 0, line = 0;
  if (!records.next(first, first_line)) {
    throw FormatError(name + ": is empty, expected lines of numbers");
  }
  const bool has_second = records.next(second, line);
  const FirstLine kind = classify(first, second, options);

  for (size_t i = 0; i < first.size() && kind != FirstLine::kValues && !are_mended(options.feature_names); ++i) {
    require_utf8(first[i].text, name + ": line " + std::to_string(first_line) + ", column " + std::to_string(i + 1));
  }
  TableBuilder table(name, options);
  const bool own_width = kind == FirstLine::kScikitLearn;  // the first line is no row
  table.set_header(first, kind, own_width ? second.size() : first.size());
  if (kind == FirstLine::kValues) table.add(first, first_line);
  if (has_second) {
    do {
      table.add(second, line);
    } while (records.next(second, line));
  }
  return table.finish();
}

}  // namespace evenkeel::data
