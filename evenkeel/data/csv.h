// CSV tables of numbers: RFC 4180 quotes, a header or none, comma, semicolon or tab, LF or CRLF, with or without BOM.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace evenkeel::data {

struct CsvOptions {
  bool labelled = true;           // whether one column holds the label; else all columns are features
  std::string label_column = {};  // a header's name, or a number from 1 (-1 = the last); "" = the last column
  // The column of example weights, named as the label's; "": none. It is neither a feature nor the label, nor the last column of the
  // default label.
  std::string weight_column = {};
  // The columns of the data that a model was trained on, where neither is said above: the label is the column of that name, or of that number in
  // a file without a header; the weight is the column of that name; else as if nothing were known.
  std::string trained_label = {}, trained_weight = {};
  // The features of a model, in its order; empty: any. Columns of a file with a header are taken by these names (a header that only counts
  // is none), and the one column beside them is the label unless label_column says another.
  std::vector<std::string> feature_names = {};
};

struct CsvTable {
  int64_t rows = 0, features = 0;
  std::vector<float> values;               // [rows, features]
  std::vector<int32_t> labels;             // rows of them, or none
  std::vector<float> weights;              // rows of them, each above 0, or none: lines of weight 0 are left out
  std::vector<std::string> class_names;    // sorted: by value when all labels are integers, else as text
  std::vector<std::string> feature_names;  // empty when there is no header
  std::vector<int64_t> lines;              // the line of each row in the file, from 1
  std::string doubt =
      {};  // what is odd about a column: rounding to 32 bits spoils it (rounding.h), it is an index or no label; "": nothing
  std::string label_column, weight_column;  // of the options those that were taken, as they say them; "": the default
};

// Parses a table. The first line is a header when another follows that has as many columns, and
//   - it holds text where the second holds numbers, and elsewhere over numbers only text or a count (0 or 1 for the first column, ...); or
//   - the label or the weight column is one of its names; or
//   - its fields are 0, 1, 2, ..., at least 4 of them: `0,1,2,3`; or
//   - all but the label column's (the last one's where none is given) and perhaps the weight's count so from 0 or from 1, at least 3 of them,
//     and the label's is text, whatever stands below it: `0,1,2,species`;
// and when it is just options.feature_names, or has text in every field. A shorter count is a row of values: `0,1`, `1,2,3,4`.
// A first line in the form of scikit-learn's tables ("150,4,setosa,versicolor,virginica": rows, features, classes) gives the class names.
// A line of weight 0 is as absent: only its weight and its number of columns are looked at.
// Numbers are read with a point, whatever the locale. `name` is for messages.
// Throws FormatError with line and column: a missing value, a ragged line, text where a number belongs, a broken quote, a weight that is
// negative or no finite number; when all weights are 0;
// and UsageError when there is no such label column, or it is a number that means one column as the name in a header that counts and another
// as its place, or when the header lacks one of options.feature_names or has others.
CsvTable parse_csv(std::string_view text, const std::string& name, const CsvOptions& options);

}  // namespace evenkeel::data
