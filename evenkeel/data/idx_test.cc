#include "evenkeel/data/idx.h"

#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

std::string big_endian(uint32_t v) {
  return {static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8), static_cast<char>(v)};
}

std::string idx(char type, const std::vector<uint32_t>& shape, const std::string& values) {
  std::string file{0, 0, type, static_cast<char>(shape.size())};
  for (const uint32_t extent : shape) file += big_endian(extent);
  return file + values;
}

Tensor examples(const std::string& file) { return parse_idx_examples(as_bytes(file), "f"); }
std::vector<int32_t> labels(const std::string& file, int64_t classes = 10) {
  return parse_idx_labels(as_bytes(file), "f", classes);
}

const std::string kImages = idx(8, {2, 2, 3}, "abcdefghijkl");
const std::string kLabels = idx(8, {3}, std::string("\x01\x00\x09", 3));

TEST(Idx, reads_bytes_as_images_with_one_channel) {
  for (const std::string& file : {kImages, gzip(kImages)}) {
    const Tensor images = examples(file);
    EXPECT_EQ(images.shape(), (Shape{2, 1, 2, 3}));
    EXPECT_EQ(images.dtype(), DType::kU8);
    EXPECT_EQ(images.values<uint8_t>()[11], 'l');
  }
}

TEST(Idx, reads_labels_of_one_and_four_bytes) {
  EXPECT_EQ(labels(kLabels), (std::vector<int32_t>{1, 0, 9}));
  EXPECT_EQ(labels(gzip(kLabels)), (std::vector<int32_t>{1, 0, 9}));
  EXPECT_EQ(labels(idx(0x0c, {2}, big_endian(300) + big_endian(0)), 301), (std::vector<int32_t>{300, 0}));
}

TEST(Idx, reads_floats_and_tables) {
  const Tensor floats = examples(idx(0x0d, {1, 1, 2}, big_endian(0x3f800000) + big_endian(0xc0000000)));
  EXPECT_EQ(floats.shape(), (Shape{1, 1, 1, 2}));
  EXPECT_EQ(floats.values<float>()[0], 1.0f);
  EXPECT_EQ(floats.values<float>()[1], -2.0f);
  const Tensor table = examples(idx(8, {2, 1}, "\x01\xff"));
  EXPECT_EQ(table.shape(), (Shape{2, 1}));
  EXPECT_EQ(table.values<float>()[1], 255.0f);
}

TEST(Idx, refuses_a_wrong_magic_with_what_it_found) {
  std::string file = kImages;
  file[0] = 'P';
  const std::string message = message_of<FormatError>([&] { examples(file); });
  EXPECT_SAYS(message, "50 00 08 03 at offset 0");
  EXPECT_SAYS(message, "expected an IDX file");
}

TEST(Idx, refuses_sizes_that_the_file_cannot_hold_before_allocating) {
  EXPECT_SAYS(message_of<FormatError>([] { examples(idx(8, {0xffffffff, 0xffffffff, 1}, "a")); }), "overflow");
  EXPECT_SAYS(message_of<FormatError>([] { examples(idx(8, {1u << 31, 28, 28}, "a")); }), "promises");
  EXPECT_SAYS(message_of<FormatError>([] { examples(gzip(idx(8, {1u << 31, 28, 28}, "a"))); }), "promises");
}

TEST(Idx, refuses_every_cut_and_what_follows_the_end) {
  for (const std::string& file : {kImages, gzip(kImages)}) {
    expect_every_cut_refused(file, [](const std::string& f) { examples(f); });
    EXPECT_THROW(examples(file + "x"), FormatError);
  }
  for (const std::string& file : {kLabels, gzip(kLabels)}) {
    expect_every_cut_refused(file, [](const std::string& f) { labels(f); });
  }
}

TEST(Idx, survives_any_damaged_byte) {
  for (const std::string& file : {kImages, gzip(kImages), kLabels, gzip(kLabels)}) {
    expect_no_crash_on_damage(file, [](const std::string& f) { examples(f); });
    expect_no_crash_on_damage(file, [](const std::string& f) { labels(f); });
  }
}

TEST(Idx, refuses_a_label_out_of_range_with_its_index) {
  EXPECT_SAYS(message_of<FormatError>([] { labels(kLabels, 9); }), "label 9 at index 2 is outside 0..8");
}

TEST(Idx, refuses_labels_for_images_and_images_for_labels) {
  EXPECT_SAYS(message_of<FormatError>([] { examples(kLabels); }), "rank 1");
  EXPECT_SAYS(message_of<FormatError>([] { labels(kImages); }), "rank 3");
  EXPECT_SAYS(message_of<FormatError>([] { labels(idx(0x0d, {1}, "abcd")); }), "floats");
}

}  // namespace
}  // namespace evenkeel::data
