#include "evenkeel/data/csv_header.h"

#include <algorithm>
#include <optional>
#include <vector>

namespace evenkeel::data {

std::optional<size_t> numbered_column(const std::string& wanted, size_t columns) {
  const auto number = as_integer(wanted);
  const auto last = static_cast<int64_t>(columns);
  if (!number || *number == 0 || *number > last || *number < -last) return {};
  return static_cast<size_t>(*number > 0 ? *number - 1 : last + *number);
}

namespace {

// A decimal comma is no text, so that the message is about the comma.
bool has_text(const Field& field) { return !as_number(field.text) && !has_decimal_comma(field.text); }

// scikit-learn's tables begin with rows, features and the names of the classes.
bool is_scikit_learn(const Record& first, const Record& second) {
  if (first.size() < 4) return false;
  const auto rows = as_integer(first[0].text), features = as_integer(first[1].text);
  if (!rows || !features || *features + 1 != static_cast<int64_t>(second.size())) return false;
  return std::none_of(first.begin() + 2, first.end(), [](const Field& f) { return as_number(f.text).has_value(); });
}

// Whether the fields at `places` count on from `start`: each is its column, or its place among them.
bool counts_from(int64_t start, const Record& line, const std::vector<size_t>& places) {
  bool by_column = true, by_place = true;
  for (size_t i = 0; i < places.size(); ++i) {
    const std::string_view text = trimmed(line[places[i]].text);
    by_column = by_column && text == std::to_string(start + static_cast<int64_t>(places[i]));
    by_place = by_place && text == std::to_string(start + static_cast<int64_t>(i));
  }
  return by_column || by_place;
}

// What pandas writes of columns without names. A row of data may count by chance, so that only long ones are believed.
bool counts_columns(const Record& first, const CsvOptions& options) {
  constexpr size_t kFewestColumns = 4, kFewestBesideLabel = 3;
  std::vector<size_t> places;
  for (size_t i = 0; i < first.size(); ++i) {
    if (!has_text(first[i])) places.push_back(i);
  }
  if (places.size() == first.size()) return places.size() >= kFewestColumns && counts_from(0, first, places);
  if (!options.labelled || places.size() < kFewestBesideLabel) return false;
  const auto weight = numbered_column(options.weight_column, first.size());
  const std::string& wanted = options.label_column.empty() ? options.trained_label : options.label_column;
  auto label = numbered_column(wanted, first.size());
  if (!label && options.label_column.empty()) label = first.size() - (weight == first.size() - 1 ? 2 : 1);
  for (size_t i = 0; i < first.size(); ++i) {
    const bool may_name = i == label || i == weight;
    if (has_text(first[i]) && (!may_name || is_missing(first[i].text))) return false;
  }
  return label && has_text(first[*label]) && (counts_from(0, first, places) || counts_from(1, first, places));
}

}  // namespace

FirstLine classify(const Record& first, const Record& second, const CsvOptions& options) {
  const auto& names = options.feature_names;
  const auto same = [](const Field& f, const std::string& n) { return trimmed(f.text) == n; };
  if (!names.empty() && std::equal(first.begin(), first.end(), names.begin(), names.end(), same)) {
    return FirstLine::kHeader;  // also one of numbers alone
  }
  if (second.empty()) {
    return std::all_of(first.begin(), first.end(), has_text) ? FirstLine::kHeader : FirstLine::kValues;
  }
  if (is_scikit_learn(first, second)) return FirstLine::kScikitLearn;
  if (first.size() != second.size()) {
    return std::all_of(first.begin(), first.end(), has_text) ? FirstLine::kHeader : FirstLine::kValues;
  }
  const auto named = [&](const Field& f) {
    const bool is_one = f.text == options.label_column || f.text == options.weight_column ||
                        f.text == options.trained_label || f.text == options.trained_weight;
    return has_text(f) && options.labelled && is_one && !f.text.empty();
  };
  if (std::any_of(first.begin(), first.end(), named)) return FirstLine::kHeader;
  if (counts_columns(first, options)) return FirstLine::kHeader;
  int64_t text_over_number = 0, number_over_number = 0, counted = 0;
  for (size_t i = 0; i < first.size(); ++i) {
    if (has_text(second[i])) continue;
    text_over_number += has_text(first[i]);
    number_over_number += !has_text(first[i]);
    const auto index = as_integer(first[i].text);
    counted += index && (*index == static_cast<int64_t>(i) || *index == static_cast<int64_t>(i) + 1);
  }
  if (text_over_number == 0) return FirstLine::kValues;
  return counted == number_over_number ? FirstLine::kHeader : FirstLine::kValues;
}

}  // namespace evenkeel::data
