// Fuzz target: JPEG pictures, as grey and as colour, of the size that the header names as long as it is small. The decoder may refuse
// with an evenkeel::Error; anything else is a finding.
#include "evenkeel/data/jpeg.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

constexpr int64_t kMost = 64;  // pixels a side

void fuzz(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  try {
    const PictureHeader header = jpeg_header(file, "fuzz");
    EK_ASSERT(header.channels == 1 || header.channels == 3);
    EK_ASSERT(header.height >= 1 && header.width >= 1 && header.height * header.width <= kMostPixels);
    if (header.height > kMost || header.width > kMost) return;
    for (const int64_t channels : {1, 3}) {
      const Shape shape = {channels, header.height, header.width};
      EK_ASSERT(decode_jpeg(file, "fuzz", shape).size() == static_cast<size_t>(element_count(shape)));
    }
    EK_ASSERT(decode_picture(file, "fuzz", {3, 5, 7}, true).size() == 105);
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace evenkeel::data

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::data::fuzz(data, size);
  return 0;
}
