// Fuzz target: NPY arrays, as values and as labels. A parser may refuse with an evenkeel::Error; anything else is a
// finding.
#include "evenkeel/data/npy.h"

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
  const auto file = std::as_bytes(std::span(data, size));
  attempt([&] {
    const NpyArray array = parse_npy(file, "fuzz");
    attempt([&] {
      std::vector<float> values(static_cast<size_t>(array.count));
      npy_floats(array, 0, "fuzz", values);
    });
    attempt([&] { npy_labels(array, "fuzz", 10); });
  });
}

}  // namespace
}  // namespace evenkeel::data

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::data::fuzz(data, size);
  return 0;
}
