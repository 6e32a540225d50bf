// Ways to bind an option to a field of Arguments: text in, a checked value stored, and back to text.
//
//   integer([](Arguments& a) -> auto& { return a.train.epochs; }, 1)
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "evenkeel/cli/options.h"
#include "evenkeel/core/numbers.h"

namespace evenkeel::cli {

template <class T>
struct Unwrapped {
  using type = T;
};
template <class T>
struct Unwrapped<std::optional<T>> {
  using type = T;
};

// What a field holds, seen through std::optional.
template <class Field>
using ValueOf = typename Unwrapped<std::remove_cvref_t<std::invoke_result_t<Field, Arguments&>>>::type;

template <class Field>
std::optional<ValueOf<Field>> read_field(Field field, const Arguments& arguments) {
  Arguments copy = arguments;  // fields are given as references to change; once per option and help text
  return std::optional<ValueOf<Field>>(field(copy));
}

template <class Field>
Binding flag(Field field) {
  return {.set = [field](Arguments& a, const std::string&) -> std::optional<std::string> {
            field(a) = true;
            return std::nullopt;
          },
          .show = [](const Arguments&) { return std::string(); },
          .words = {},
          .flag = true};
}

// A whole number in [least, most].
template <class Field>
Binding integer(Field field, int64_t least, int64_t most = std::numeric_limits<int64_t>::max()) {
  const std::string expected = most == std::numeric_limits<int64_t>::max()
                                   ? fmt::format("a whole number of at least {}", least)
                                   : fmt::format("a whole number from {} to {}", least, most);
  return {.set = [=](Arguments& a, const std::string& text) -> std::optional<std::string> {
            const auto value = number_from<int64_t>(text);
            if (!value && !text.empty() &&
                text.find_first_not_of("0123456789") == text.npos) {  // of more digits than it reads
              return fmt::format("a whole number from {} to {}", least, most);
            }
            if (!value || *value < least || *value > most) return expected;
            field(a) = static_cast<ValueOf<Field>>(*value);
            return std::nullopt;
          },
          .show =
              [field](const Arguments& a) {
                const auto value = read_field(field, a);
                return value ? fmt::format("{}", *value) : std::string();
              },
          .words = {}};
}

// A number of bytes above 0: a whole number, with K, M or G behind it in units of 1024, 1024^2 or 1024^3.
template <class Field>
Binding bytes(Field field) {
  return {.set = [=](Arguments& a, const std::string& text) -> std::optional<std::string> {
            constexpr int64_t kMost = int64_t{1} << 50;
            const size_t unit = text.empty() ? text.npos : std::string("KMG").find(text.back());
            const int shift = unit == text.npos ? 0 : 10 * static_cast<int>(unit + 1);
            const auto value = number_from<int64_t>(unit == text.npos ? text : text.substr(0, text.size() - 1));
            if (!value || *value < 1 || *value > kMost >> shift) return "a number of bytes, such as 512M or 2G";
            field(a) = static_cast<size_t>(*value << shift);
            return std::nullopt;
          },
          .show = [](const Arguments&) { return std::string(); },
          .words = {}};
}

// A range of real numbers, its ends included or not, and its name in messages.
struct Range {
  double low, high;
  bool low_included, high_included;
  const char* name;
  bool holds(double x) const {
    return std::isfinite(x) && (low_included ? x >= low : x > low) && (high_included ? x <= high : x < high);
  }
};
inline constexpr double kUnbounded = std::numeric_limits<double>::infinity();
inline constexpr Range kPositive{0, kUnbounded, false, false, "a number above 0"};
inline constexpr Range kNotNegative{0, kUnbounded, true, false, "a number of at least 0"};
inline constexpr Range kAtLeastOne{1, kUnbounded, true, false, "a number of at least 1"};
inline constexpr Range kFraction{0, 1, true, false, "a number from 0 to below 1"};
inline constexpr Range kShare{0, 1, false, true, "a number above 0 and at most 1"};

template <class Field>
Binding number(Field field, Range range) {
  return {.set = [=](Arguments& a, const std::string& text) -> std::optional<std::string> {
            const auto value = number_from<double>(text);
            if (!value || !range.holds(*value)) return range.name;
            const auto stored = static_cast<ValueOf<Field>>(*value);
            if (!range.holds(static_cast<double>(stored))) return range.name;  // not a float
            field(a) = stored;
            return std::nullopt;
          },
          .show =
              [field](const Arguments& a) {
                const auto value = read_field(field, a);
                return value ? fmt::format("{}", *value) : std::string();
              },
          .words = {}};
}

template <class Field>
Binding text(Field field) {
  return {.set = [field](Arguments& a, const std::string& value) -> std::optional<std::string> {
            field(a) = value;
            return std::nullopt;
          },
          .show = [field](const Arguments& a) { return read_field(field, a).value_or(""); },
          .words = {}};
}

// Text may be one of `known`, which shells offer, or something else.
template <class Field>
Binding text_or(Field field, std::vector<std::string> known) {
  Binding binding = text(field);
  binding.words = std::move(known);
  return binding;
}

template <class Field>
Binding texts(Field field) {
  return {.set = [field](Arguments& a, const std::string& value) -> std::optional<std::string> {
            field(a).push_back(value);
            return std::nullopt;
          },
          .show = [](const Arguments&) { return std::string(); },
          .words = {},
          .flag = false,
          .many = true};
}

// One of some words, each standing for a value.
template <class Field>
Binding choice(Field field, std::vector<std::pair<std::string, ValueOf<Field>>> values) {
  std::vector<std::string> words;
  for (const auto& [word, value] : values) words.push_back(word);
  return {.set = [=](Arguments& a, const std::string& text) -> std::optional<std::string> {
            for (const auto& [word, value] : values) {
              if (word != text) continue;
              field(a) = value;
              return std::nullopt;
            }
            return "one of " + fmt::format("{}", fmt::join(words, ", "));
          },
          .show =
              [=](const Arguments& a) {
                const auto now = read_field(field, a);
                for (const auto& [word, value] : values) {
                  if (now && value == *now) return word;
                }
                return std::string();
              },
          .words = words};
}

// As choice, for the values that the library names itself.
template <class Field, class FromName>
Binding named(Field field, const std::vector<std::string>& names, FromName from_name) {
  std::vector<std::pair<std::string, ValueOf<Field>>> values;
  for (const std::string& name : names) values.emplace_back(name, from_name(name));
  return choice(field, std::move(values));
}

// Text that a function of the library reads; it throws UsageError with its own message.
template <class Field, class Read>
Binding read_by(Field field, Read read) {
  return {.set = [=](Arguments& a, const std::string& text) -> std::optional<std::string> {
            field(a) = read(text);
            return std::nullopt;
          },
          .show = [](const Arguments&) { return std::string("none"); },
          .words = {}};
}

}  // namespace evenkeel::cli
