// Fuzz target: CIFAR batches of both kinds. A parser may refuse with an evenkeel::Error; anything else is a finding.
#include "evenkeel/data/cifar.h"

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
  for (const CifarKind kind : {CifarKind::kCifar10, CifarKind::kCifar100}) {
    attempt([&] {
      Bytes pixels;
      std::vector<int32_t> labels;
      parse_cifar(file, "fuzz", kind, pixels, labels);
    });
  }
}

}  // namespace
}  // namespace evenkeel::data

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::data::fuzz(data, size);
  return 0;
}
