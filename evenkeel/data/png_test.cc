#include "evenkeel/data/png.h"

#include <gtest/gtest.h>

#include <random>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

std::vector<uint8_t> noise(const Shape& shape) {
  std::mt19937 random(7);
  std::vector<uint8_t> pixels(static_cast<size_t>(element_count(shape)));
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random());
  return pixels;
}

TEST(Png, what_is_encoded_is_decoded_to_the_byte) {
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{3, 1, 1}, Shape{1, 5, 17}, Shape{3, 13, 6}, Shape{3, 64, 200}}) {
    const std::vector<uint8_t> pixels = noise(shape);
    const std::vector<std::byte> file = encode_png(pixels, shape);
    ASSERT_TRUE(is_png(file));
    const PictureHeader header = png_header(file, "f");
    EXPECT_EQ(Shape({header.channels, header.height, header.width}), shape);
    EXPECT_EQ(decode_png(file, "f", shape), pixels) << to_string(shape);
  }
}

TEST(Png, flat_pictures_are_small) {
  const Shape shape{3, 100, 100};
  EXPECT_LT(encode_png(std::vector<uint8_t>(30000, 200), shape).size(), 1000u);
}

TEST(Png, shapes_that_are_no_pictures_are_refused) {
  for (const Shape& shape : {Shape{2, 4, 4}, Shape{4, 4, 4}, Shape{0, 4, 4}, Shape{1, 0, 4}, Shape{1, 4, 0}, Shape{16},
                             Shape{1, int64_t{1} << 40, 4}}) {
    EXPECT_THROW(encode_png({}, shape), UsageError) << to_string(shape);
  }
}

}  // namespace
}  // namespace evenkeel::data
