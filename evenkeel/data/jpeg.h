// JPEG pictures as bytes of one or three channels. The only file that knows libjpeg is jpeg.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/data/picture.h"

namespace evenkeel::data {

// ff d8 ff
bool is_jpeg(std::span<const std::byte> file);

// As read_picture_header and decode_picture of picture.h, for one format: grey, YCbCr and RGB of 8 bits, baseline and progressive. The
// orientation in a camera's notes is not applied. Whatever libjpeg would only warn of, where it means lost pixels (data that end early or
// are damaged), is refused. Throw FormatError also for CMYK and arithmetic coding.
PictureHeader jpeg_header(std::span<const std::byte> file, const std::string& name);
std::vector<uint8_t> decode_jpeg(std::span<const std::byte> file, const std::string& name, const Shape& shape);

}  // namespace evenkeel::data
