#include "evenkeel/model_io/json_depth.h"

#include "evenkeel/core/error.h"

namespace evenkeel {
namespace {

// Exact for JSON and for what a parser reads of other text before it gives up.
bool is_too_deep(std::string_view json) {
  int depth = 0;
  bool in_text = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_text) {
      if (c == '\\') ++i;
      if (c == '"') in_text = false;
      continue;
    }
    in_text = c == '"';
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (depth > kMostJsonDepth) return true;
    if (depth < 0) return false;  // no parser reads on
  }
  return false;
}

}  // namespace

void require_shallow_json(std::string_view json, const std::string& where) {
  if (!is_too_deep(json)) return;
  throw FormatError(where + ": lists and objects are nested more than " + std::to_string(kMostJsonDepth) +
                    " deep, which no program that writes models does; the file is damaged or hostile");
}

}  // namespace evenkeel
