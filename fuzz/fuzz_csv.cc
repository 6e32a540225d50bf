// Fuzz target: CSV tables, with and without a label. A parser may refuse with an evenkeel::Error; anything else is a
// finding.
#include "evenkeel/data/csv.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

template <class F>
void attempt(F&& parse) {
  try {
    parse();
  } catch (const Error&) {
  }
}

void fuzz(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  attempt([&] { parse_csv(text, "fuzz", {.labelled = true, .label_column = ""}); });
  attempt([&] { parse_csv(text, "fuzz", {.labelled = true, .label_column = "kind"}); });
  attempt([&] { parse_csv(text, "fuzz", {.labelled = true, .weight_column = "2"}); });
  attempt([&] { parse_csv(text, "fuzz", {.labelled = true, .trained_label = "kind", .trained_weight = "w"}); });
  attempt([&] { parse_csv(text, "fuzz", {.labelled = false, .label_column = ""}); });
}

}  // namespace
}  // namespace evenkeel::data

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::data::fuzz(data, size);
  return 0;
}
