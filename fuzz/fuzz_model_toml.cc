// Fuzz target: the TOML form of a network, up to its graph. A parser may refuse with an evenkeel::Error; anything else is a finding.
#include <cstddef>
#include <cstdint>
#include <string>

#include "evenkeel/core/error.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel {
namespace {

void fuzz(const uint8_t* data, size_t size) {
  try {
    const ModelSpec spec = parse_model_toml(std::string(reinterpret_cast<const char*>(data), size), "fuzz", {}, 0);
    const ModelSpec again = parse_model_toml(to_toml(spec), "written", {}, 0);
    EK_ASSERT(to_toml(again) == to_toml(spec));
    build_network(spec, Mode::kTrain);
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace evenkeel

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::fuzz(data, size);
  return 0;
}
