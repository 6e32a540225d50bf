#include "evenkeel/data/csv_lines.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/core/numbers.h"

namespace evenkeel::data {

std::string excerpt(std::string_view text) {
  std::string shown(text.substr(0, 40));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return "'" + shown + (text.size() > 40 ? "..." : "") + "'";
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::optional<double> as_number(std::string_view text) {
  text = trimmed(text);
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty()) return {};
  return value;
}

std::optional<int64_t> as_integer(std::string_view text) {
  if (const auto written = number_from<int64_t>(std::string(trimmed(text)))) return written;
  const auto value = as_number(text);
  if (!value || !(std::abs(*value) <= 0x1p53) || std::floor(*value) != *value) return {};
  return static_cast<int64_t>(*value);
}

bool has_decimal_comma(std::string_view text) {
  std::string with_point(text);
  const size_t comma = with_point.find(',');
  if (comma == with_point.npos) return false;
  with_point[comma] = '.';
  return as_number(with_point).has_value();
}

bool is_missing(std::string_view text) {
  text = trimmed(text);
  constexpr std::array<std::string_view, 9> kWords = {"", "?", "NA", "N/A", "nan", "NaN", "NULL", "null", "None"};
  return std::find(kWords.begin(), kWords.end(), text) != kWords.end();
}

bool Records::next(Record& record, int64_t& line) {
  while (at_ < text_.size() && end_of_line()) {
  }
  if (at_ >= text_.size()) return false;
  line = line_;
  size_t n = 0;
  do {
    if (n == record.size()) record.emplace_back();
    read_field(record[n++]);
  } while (accept_delimiter());
  record.resize(n);
  end_of_line();
  return true;
}

bool Records::end_of_line() {
  if (at_ >= text_.size() || !at_line_end()) return false;
  if (text_[at_] == '\r' && at_ + 1 < text_.size() && text_[at_ + 1] == '\n') ++at_;
  ++at_;
  ++line_;
  return true;
}

bool Records::accept_delimiter() {
  if (at_ >= text_.size() || text_[at_] != delimiter_) return false;
  ++at_;
  return true;
}

void Records::read_field(Field& field) {
  field.text.clear();
  field.quoted = at_ < text_.size() && text_[at_] == '"';
  if (field.quoted) return read_quoted(field);
  const size_t begin = at_;
  while (at_ < text_.size() && text_[at_] != delimiter_ && !at_line_end()) ++at_;
  field.text = text_.substr(begin, at_ - begin);
}

void Records::read_quoted(Field& field) {
  const int64_t first_line = line_;
  ++at_;
  while (true) {
    if (at_ >= text_.size()) {
      throw FormatError(name_ + ": the quote opened in line " + std::to_string(first_line) +
                        " is not closed before the end of the file");
    }
    const char c = text_[at_++];
    if (c == '\n') ++line_;
    if (c != '"') {
      field.text += c;
    } else if (at_ < text_.size() && text_[at_] == '"') {
      field.text += '"';
      ++at_;
    } else {
      break;
    }
  }
  if (at_ < text_.size() && text_[at_] != delimiter_ && !at_line_end()) {
    throw FormatError(name_ + ": found " + excerpt(text_.substr(at_, 1)) + " after the closing quote in line " +
                      std::to_string(line_) + ", expected a delimiter or the end of the line");
  }
}

namespace {

constexpr std::array<char, 3> kDelimiters = {'\t', ';', ','};  // on a tie the earlier one wins

// Counts the delimiters outside quotes in the line at `at`, and moves `at` behind it. Skips blank lines.
std::array<int64_t, 3> count_delimiters(std::string_view text, size_t& at) {
  std::array<int64_t, 3> counts{};
  while (at < text.size() && (text[at] == '\n' || text[at] == '\r')) ++at;
  bool quoted = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') quoted = !quoted;
    if (quoted) continue;
    if (c == '\n' || c == '\r') break;
    for (size_t d = 0; d < kDelimiters.size(); ++d) counts[d] += c == kDelimiters[d];
  }
  return counts;
}

}  // namespace

char sniff_delimiter(std::string_view text) {
  size_t at = 0;
  const auto first = count_delimiters(text, at);
  const auto second = at < text.size() ? count_delimiters(text, at) : first;
  size_t best = kDelimiters.size();
  for (size_t d = 0; d < kDelimiters.size(); ++d) {
    const bool even = first[d] > 0 && first[d] == second[d];
    if (even && (best == kDelimiters.size() || first[d] > first[best])) best = d;
  }
  if (best < kDelimiters.size()) return kDelimiters[best];
  const auto most = std::max_element(second.begin(), second.end());
  return *most > 0 ? kDelimiters[static_cast<size_t>(most - second.begin())] : ',';
}

}  // namespace evenkeel::data
