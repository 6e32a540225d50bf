// The lines and fields of a CSV table, before anything is known of what they mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace evenkeel::data {

struct Field {
  std::string text;
  bool quoted = false;
};
using Record = std::vector<Field>;

// What is said of a field in a message: short, in quotes, and printable whatever the file holds.
std::string excerpt(std::string_view text);

// Without the spaces and tabs at both ends.
std::string_view trimmed(std::string_view text);

// The whole text as a number with a point, whatever the locale. "nan" and "inf" count as numbers here.
std::optional<double> as_number(std::string_view text);
// A whole number: of 64 bits where it is written as one, else (1e3, 2.0) of at most 2^53 in magnitude, beyond which doubles skip integers.
std::optional<int64_t> as_integer(std::string_view text);
// "3,5": a number but for its decimal comma.
bool has_decimal_comma(std::string_view text);

bool is_missing(std::string_view text);

// Splits the text into records. Blank lines are skipped. Throws FormatError on a broken quote.
class Records {
 public:
  Records(std::string_view text, char delimiter, const std::string& name)
      : text_(text), delimiter_(delimiter), name_(name) {}

  // Assigns the fields of the next record and its line; false at the end.
  bool next(Record& record, int64_t& line);

 private:
  bool at_line_end() const { return text_[at_] == '\n' || text_[at_] == '\r'; }
  bool end_of_line();
  bool accept_delimiter();
  void read_field(Field& field);
  void read_quoted(Field& field);

  std::string_view text_;
  char delimiter_;
  const std::string& name_;
  size_t at_ = 0;
  int64_t line_ = 1;
};

// Tab, semicolon or comma: which occurs equally often in the first two lines, or else the most frequent one of the second.
char sniff_delimiter(std::string_view text);

}  // namespace evenkeel::data
