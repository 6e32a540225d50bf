// Fuzz target: PNG pictures, as grey and as colour. The size that the header names is the one asked for, as long as it is small:
// a decoder that was asked for another refuses before the first pixel. It may refuse with an evenkeel::Error; anything else
// is a finding.
#include "evenkeel/data/png.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

constexpr size_t kWidthAt = 16, kHeightAt = 20;  // in the IHDR chunk, which stands first
constexpr int64_t kMost = 64;                    // pixels a side

int64_t big_endian(const uint8_t* at) {
  return int64_t{at[0]} << 24 | int64_t{at[1]} << 16 | int64_t{at[2]} << 8 | int64_t{at[3]};
}

uint32_t crc_of(const uint8_t* data, size_t size) {
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc % 2 != 0 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

// The file with right checksums: without them a changed byte is mostly found by its checksum, and gets no further.
std::vector<uint8_t> with_checksums(const uint8_t* data, size_t size) {
  constexpr size_t kSignature = 8, kLengthAndName = 8, kChecksum = 4;
  std::vector<uint8_t> file(data, data + size);
  for (size_t at = kSignature; size - std::min(size, at) >= kLengthAndName + kChecksum;) {
    const auto length = static_cast<size_t>(big_endian(data + at));
    if (length > size - at - kLengthAndName - kChecksum) break;
    const uint32_t crc = crc_of(data + at + 4, length + 4);  // of name and content
    uint8_t* const checksum = file.data() + at + kLengthAndName + length;
    for (int i = 0; i < 4; ++i) checksum[i] = static_cast<uint8_t>(crc >> (24 - 8 * i));
    at += kLengthAndName + length + kChecksum;
  }
  return file;
}

void fuzz(const uint8_t* data, size_t size) {
  int64_t height = 8, width = 8;
  if (size >= kHeightAt + 4) {
    const int64_t named_width = big_endian(data + kWidthAt), named_height = big_endian(data + kHeightAt);
    if (named_width >= 1 && named_width <= kMost) width = named_width;
    if (named_height >= 1 && named_height <= kMost) height = named_height;
  }
  const std::vector<uint8_t> mended = with_checksums(data, size);
  for (const int64_t channels : {0, 1, 3}) {  // 0: the file as it is
    try {
      const std::span<const uint8_t> file = channels == 0 ? std::span(data, size) : std::span(mended);
      const Shape shape = {std::max<int64_t>(channels, 1), height, width};
      const std::vector<uint8_t> pixels = decode_png(std::as_bytes(file), "fuzz", shape);
      EK_ASSERT(pixels.size() == static_cast<size_t>(shape[0] * height * width));
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace evenkeel::data

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::data::fuzz(data, size);
  return 0;
}
