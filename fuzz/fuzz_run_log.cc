// Fuzz target: the log of a run. It may be refused with an evenkeel::Error; anything else is a finding.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/train/run_log.h"

namespace evenkeel {
namespace {

void fuzz(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    for (const LogRecord& record : parse_log(text, "fuzz")) (void)step_of(record);
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace evenkeel

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::fuzz(data, size);
  return 0;
}
