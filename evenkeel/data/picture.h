// Pictures in files, PNG or JPEG, as planes of bytes. png.h and jpeg.h know the formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"
#include "evenkeel/data/preprocess.h"

namespace evenkeel::data {

struct PictureHeader {
  int64_t channels = 0;  // 1: grey, 3: colour
  int64_t height = 0, width = 0;
};

// More pixels than a camera's picture has: 64 Mi. No larger one is decoded.
inline constexpr int64_t kMostPixels = int64_t{1} << 26;

// Whether the bytes begin as a PNG or a JPEG does; whether a file's name ends as those of pictures do.
bool is_picture(std::span<const std::byte> file);
bool has_picture_name(const std::string& path);

// What the header says; no pixel is decoded. Throws FormatError on bad bytes and when so many pixels cannot come from such a file.
PictureHeader read_picture_header(std::span<const std::byte> file, const std::string& name);

// Decodes to `shape` = {C, H, W} (channels first), C = 1 or 3: colour to grey by 0.299 R + 0.587 G + 0.114 B, grey to colour by repetition.
// resize: pictures of another size are brought to H x W (preprocess.h); else UsageError before a pixel is decoded. FormatError on bad bytes.
std::vector<uint8_t> decode_picture(std::span<const std::byte> file, const std::string& name, const Shape& shape,
                                    bool resize = false);

// For the decoders: throws FormatError naming the size when a picture has more than kMostPixels, or more than `most`, the pixels that so
// small a file can hold; UsageError when it is not shape's size, or shape has neither 1 nor 3 channels.
void require_possible(const PictureHeader& header, uint64_t most, const std::string& name);
void require_size(const PictureHeader& header, const Shape& shape, const std::string& name);
// Grey of a pixel, rounded to nearest.
inline uint8_t grey_of(uint32_t r, uint32_t g, uint32_t b) {
  return static_cast<uint8_t>((299 * r + 587 * g + 114 * b + 500) / 1000);
}

}  // namespace evenkeel::data
