// Small things about text.
#pragma once

#include <algorithm>
#include <string>

namespace evenkeel {

// With the small letters of ASCII in the place of its capitals, whatever the locale.
inline std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return text;
}

}  // namespace evenkeel
