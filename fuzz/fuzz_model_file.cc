// Fuzz target: model files of evenkeel: tensors, and all that is read from the metadata. A file may be refused with an evenkeel::Error; what is
// read is written and read again. Seeds: fuzz/corpus/model_file.
#include <cstddef>
#include <cstdint>
#include <span>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/train/model_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace evenkeel;
  try {
    const Model model = model_from(parse_safetensors(std::as_bytes(std::span(data, size)), "input"), "input");
    const Model again = model_from(to_tensor_file(model), "again");
    EK_ASSERT(again.class_names == model.class_names && again.training == model.training);
  } catch (const Error&) {
  }
  return 0;
}
