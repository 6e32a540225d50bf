// PNG images as bytes of one or three channels. The only file that knows libpng is png.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel::data {

// Decodes a PNG to `shape` = {C, H, W} (channels first), C = 1 or 3: any colour type and depth, 16 bits rounded to 8,
// alpha laid over black, colour to grey by 0.299 R + 0.587 G + 0.114 B, grey to colour by repetition. No gamma is
// applied.
// Throws UsageError when the picture is not H x W (found before a pixel is decoded) or C is another number,
// FormatError on bad bytes.
std::vector<uint8_t> decode_png(std::span<const std::byte> file, const std::string& name, const Shape& shape);

}  // namespace evenkeel::data
