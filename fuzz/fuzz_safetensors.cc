// Any bytes given to the safetensors parser are refused with a FormatError, or parse to a file that can be written and parsed
// again to the same bytes. Everything else is for the sanitizers. Seeds: fuzz/corpus/safetensors.
#include <cstddef>
#include <cstdint>
#include <span>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::TensorFile file;
  try {
    file = evenkeel::parse_safetensors(std::as_bytes(std::span(data, size)), "input");
  } catch (const evenkeel::FormatError&) {
    return 0;
  }
  size_t total_bytes = 0;
  for (const auto& [name, tensor] : file.tensors) total_bytes += tensor.bytes();
  EK_ASSERT(total_bytes <= size);
  const auto written = evenkeel::serialize_safetensors(file);
  EK_ASSERT(evenkeel::serialize_safetensors(evenkeel::parse_safetensors(written, "again")) == written);
  return 0;
}
