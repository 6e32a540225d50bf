#include "evenkeel/data/picture.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/core/text.h"
#include "evenkeel/data/jpeg.h"
#include "evenkeel/data/png.h"

namespace evenkeel::data {

bool is_picture(std::span<const std::byte> file) { return is_png(file) || is_jpeg(file); }

bool has_picture_name(const std::string& path) {
  const std::string name = lower(path);
  return name.ends_with(".png") || name.ends_with(".jpg") || name.ends_with(".jpeg");
}

PictureHeader read_picture_header(std::span<const std::byte> file, const std::string& name) {
  if (is_jpeg(file)) return jpeg_header(file, name);
  return png_header(file, name);  // whose message says what a picture begins with
}

std::vector<uint8_t> decode_picture(std::span<const std::byte> file, const std::string& name, const Shape& shape,
                                    bool resize) {
  const auto decode = [&](const Shape& size) {
    return is_jpeg(file) ? decode_jpeg(file, name, size) : decode_png(file, name, size);
  };
  if (!resize) return decode(shape);
  const PictureHeader header = read_picture_header(file, name);
  const ImageSize from = {header.height, header.width}, to = {shape[1], shape[2]};
  std::vector<uint8_t> own = decode({shape[0], header.height, header.width});
  if (from == to) return own;
  std::vector<uint8_t> resized(static_cast<size_t>(element_count(shape)));
  for (int64_t c = 0; c < shape[0]; ++c) {
    resize_plane(own.data() + c * from.height * from.width, from, resized.data() + c * to.height * to.width, to);
  }
  return resized;
}

void require_possible(const PictureHeader& header, uint64_t most, const std::string& name) {
  // Both extents are below 2^31 in either format.
  const auto pixels = static_cast<uint64_t>(header.height) * static_cast<uint64_t>(header.width);
  if (pixels <= std::min<uint64_t>(most, kMostPixels)) return;
  const std::string size = name + ": the picture is said to be " + std::to_string(header.width) + " wide and " +
                           std::to_string(header.height) + " high";
  if (pixels > most) throw FormatError(size + ", more than so small a file can hold; is it damaged?");
  throw FormatError(size + ", more than the " + std::to_string(kMostPixels) + " pixels that are read; resize it first");
}

void require_size(const PictureHeader& header, const Shape& shape, const std::string& name) {
  EK_ASSERT(shape.size() == 3);
  if (shape[0] != 1 && shape[0] != 3) {
    throw UsageError(name + ": the model wants " + std::to_string(shape[0]) +
                     " channels, a picture can be turned into 1 or 3; give the example as NPY");
  }
  if (header.height == shape[1] && header.width == shape[2]) return;
  throw UsageError(name + ": the picture is " + std::to_string(header.width) + " wide and " +
                   std::to_string(header.height) + " high, the model expects " + std::to_string(shape[2]) + " by " +
                   std::to_string(shape[1]) + "; resize it with --resize " + std::to_string(shape[1]) + "x" +
                   std::to_string(shape[2]));
}

}  // namespace evenkeel::data
