// Text in pages.
#pragma once

#include <string>
#include <string_view>

namespace evenkeel::report {

// Text that can stand between tags and in the value of an attribute: nothing of it is markup.
inline std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace evenkeel::report
