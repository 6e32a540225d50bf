// PNG images as bytes of one or three channels. The only file that knows libpng is png.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/data/picture.h"

namespace evenkeel::data {

bool is_png(std::span<const std::byte> file);

// As read_picture_header and decode_picture of picture.h, for one format: any colour type and depth, 16 bits rounded to 8, alpha laid over
// black. A palette counts as colour. No gamma is applied.
PictureHeader png_header(std::span<const std::byte> file, const std::string& name);
std::vector<uint8_t> decode_png(std::span<const std::byte> file, const std::string& name, const Shape& shape);

// `shape` = {C, H, W} planes of bytes (channels first), C = 1 (grey) or 3 (RGB), as a PNG that decode_png gives back to the byte. Requires
// C*H*W pixels (EK_ASSERT). Throws UsageError when the shape is not that of a picture, BackendError when libpng fails.
std::vector<std::byte> encode_png(std::span<const uint8_t> pixels, const Shape& shape);

}  // namespace evenkeel::data
