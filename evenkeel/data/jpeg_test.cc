#include "evenkeel/data/jpeg.h"

#include <algorithm>
#include <cmath>

#include "evenkeel/data/files_testing.h"
#include "evenkeel/data/pictures_testing.h"

namespace evenkeel::data {
namespace {

using Pixels = std::vector<uint8_t>;

Pixels decode(const std::string& file, const Shape& shape) { return decode_jpeg(as_bytes(file), "f.jpg", shape); }

// Interleaved pixels that change slowly, so that little is lost.
std::string slopes(int width, int height, int channels) {
  std::string pixels;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < channels; ++c) pixels += static_cast<char>(20 + 3 * x + 2 * y + 40 * c);
    }
  }
  return pixels;
}

constexpr int kWidth = 19, kHeight = 13;

TEST(Jpeg, grey_and_colour_come_back_as_planes) {
  for (const bool progressive : {false, true}) {
    const std::string grey = slopes(kWidth, kHeight, 1), colour = slopes(kWidth, kHeight, 3);
    const Pixels one = decode(jpeg(kWidth, kHeight, grey, {.colours = JCS_GRAYSCALE, .progressive = progressive}),
                              {1, kHeight, kWidth});
    ASSERT_EQ(one.size(), grey.size());
    for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], static_cast<uint8_t>(grey[i]), 2) << i;
    const Pixels three = decode(jpeg(kWidth, kHeight, colour, {.progressive = progressive}), {3, kHeight, kWidth});
    ASSERT_EQ(three.size(), colour.size());
    for (size_t i = 0; i < three.size(); ++i) {
      const size_t plane = kWidth * kHeight, c = i / plane, pixel = i % plane;
      EXPECT_NEAR(three[i], static_cast<uint8_t>(colour[3 * pixel + c]), 3) << i;
    }
  }
}

TEST(Jpeg, grey_is_repeated_and_colour_weighted) {
  const std::string grey = jpeg(kWidth, kHeight, slopes(kWidth, kHeight, 1), {.colours = JCS_GRAYSCALE});
  const Pixels one = decode(grey, {1, kHeight, kWidth}), three = decode(grey, {3, kHeight, kWidth});
  for (size_t i = 0; i < three.size(); ++i) EXPECT_EQ(three[i], one[i % one.size()]);
  const std::string colour = jpeg(kWidth, kHeight, slopes(kWidth, kHeight, 3));
  const Pixels planes = decode(colour, {3, kHeight, kWidth}), weighted = decode(colour, {1, kHeight, kWidth});
  for (size_t i = 0; i < weighted.size(); ++i) {
    const double expected =
        0.299 * planes[i] + 0.587 * planes[i + weighted.size()] + 0.114 * planes[i + 2 * weighted.size()];
    EXPECT_NEAR(weighted[i], expected, 0.5 + 1e-9);
  }
}

TEST(Jpeg, the_header_tells_size_and_channels) {
  const PictureHeader colour = jpeg_header(as_bytes(jpeg(5, 7, slopes(5, 7, 3))), "f");
  EXPECT_EQ(colour.channels, 3);
  EXPECT_EQ(colour.height, 7);
  EXPECT_EQ(colour.width, 5);
  EXPECT_EQ(jpeg_header(as_bytes(jpeg(5, 7, slopes(5, 7, 1), {.colours = JCS_GRAYSCALE})), "f").channels, 1);
}

TEST(Jpeg, cmyk_and_arithmetic_coding_are_refused_in_one_sentence) {
  EXPECT_SAYS(message_of<FormatError>([] {
                decode(jpeg(8, 8, slopes(8, 8, 4), {.colours = JCS_CMYK}), {3, 8, 8});
              }),
              "CMYK");
  EXPECT_SAYS(message_of<FormatError>([] {
                decode(jpeg(8, 8, slopes(8, 8, 3), {.arithmetic = true}), {3, 8, 8});
              }),
              "arithmetic coding");
}

TEST(Jpeg, another_size_is_named_before_a_pixel_is_decoded) {
  const std::string file = jpeg(5, 7, slopes(5, 7, 3));
  const std::string message = message_of<UsageError>([&] { decode(file.substr(0, file.size() - 9), {3, 28, 28}); });
  EXPECT_SAYS(message, "5 wide and 7 high");
  EXPECT_SAYS(message, "--resize 28x28");
  EXPECT_THROW(decode(file, {4, 7, 5}), UsageError);
}

TEST(Jpeg, a_size_that_so_few_bytes_cannot_hold_is_refused) {
  std::string file = jpeg(8, 8, slopes(8, 8, 3));
  const size_t frame = file.find("\xff\xc0");
  file.replace(frame + 5, 4, "\xff\xdc\xff\xdc");  // 65500 x 65500
  EXPECT_SAYS(message_of<FormatError>([&] { jpeg_header(as_bytes(file), "f"); }), "65500 wide and 65500 high");
  EXPECT_THROW(decode(file, {3, 65500, 65500}), FormatError);
}

TEST(Jpeg, every_cut_is_refused_where_libjpeg_would_warn) {
  for (const bool progressive : {false, true}) {
    const std::string file = jpeg(kWidth, kHeight, slopes(kWidth, kHeight, 3), {.progressive = progressive});
    expect_every_cut_refused(file, [](const std::string& f) { decode(f, {3, kHeight, kWidth}); });
    EXPECT_NO_THROW(decode(file + "what some cameras append", {3, kHeight, kWidth}));
  }
}

TEST(Jpeg, no_damaged_byte_brings_it_down) {
  for (const bool progressive : {false, true}) {
    const std::string file =
        jpeg(kWidth, kHeight, slopes(kWidth, kHeight, 3), {.progressive = progressive, .subsampled = true});
    expect_no_crash_on_damage(file, [](const std::string& f) { decode(f, {3, kHeight, kWidth}); });
  }
  EXPECT_SAYS(message_of<FormatError>([] { decode("GIF89a", {3, 1, 1}); }), "ff d8 ff");
}

TEST(Jpeg, a_file_of_very_many_scans_is_refused) {
  const std::string file =
      jpeg(kWidth, kHeight, slopes(kWidth, kHeight, 1), {.colours = JCS_GRAYSCALE, .progressive = true});
  const size_t last = file.rfind("\xff\xda"), end = file.size() - 2;  // the last scan, up to the end marker
  std::string many = file.substr(0, end);
  for (int i = 0; i < 120; ++i) many += file.substr(last, end - last);
  EXPECT_SAYS(message_of<FormatError>([&] { decode(many + file.substr(end), {1, kHeight, kWidth}); }), "bad JPEG");
}

}  // namespace
}  // namespace evenkeel::data
