// Text as numbers, whatever the locale.
#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <system_error>

namespace evenkeel {

// Whole text as a number, in the C locale; nothing when it is none.
template <class T>
std::optional<T> number_from(const std::string& text) {
  const char* first = text.data();
  const char* const last = first + text.size();
  if (first != last && *first == '+') ++first;
  T value{};
  const auto [end, error] = std::from_chars(first, last, value);
  if (error != std::errc() || end != last || first == last) return std::nullopt;
  return value;
}

}  // namespace evenkeel
