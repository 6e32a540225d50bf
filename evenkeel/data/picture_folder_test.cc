#include "evenkeel/data/picture_folder.h"

#include <algorithm>
#include <filesystem>

#include "evenkeel/data/files_testing.h"
#include "evenkeel/data/pictures_testing.h"

namespace evenkeel::data {
namespace {

using Names = std::vector<std::string>;

std::string grey_png(char pixel, uint32_t width = 2, uint32_t height = 2) {
  return png(width, height, kGrey, std::string(size_t{width} * height, pixel));
}
std::string red_png() { return png(2, 2, kRgb, std::string("\xff\0\0\xff\0\0\xff\0\0\xff\0\0", 12)); }

void put(const TemporaryFolder& folder, const std::string& name, const std::string& content) {
  std::filesystem::create_directories(std::filesystem::path(folder.path() + "/" + name).parent_path());
  folder.write(name, content);
}

TEST(PictureFolder, classes_are_folders_and_examples_stand_in_the_order_of_names) {
  const TemporaryFolder folder;
  put(folder, "dog/b.png", grey_png(2));
  put(folder, "dog/a.PNG", grey_png(1));
  put(folder, "cat/x.jpg", jpeg(2, 2, std::string(4, '\x40'), {.colours = JCS_GRAYSCALE}));
  put(folder, "cat/notes.txt", "no picture");
  put(folder, "cat/.hidden.png", "no picture");
  put(folder, "empty/readme", "");
  EXPECT_TRUE(is_picture_folder(folder.path()));
  const Splits splits = load_picture_folder(folder.path(), {});
  EXPECT_EQ(splits.train.class_names, (Names{"cat", "dog"}));
  EXPECT_EQ(splits.train.labels, (std::vector<int32_t>{0, 1, 1}));
  EXPECT_EQ(splits.train.example_shape, (Shape{1, 2, 2}));
  const auto values = splits.train.values.values<uint8_t>();
  EXPECT_EQ(values[0], 0x40);
  EXPECT_EQ(values[4], 1);
  EXPECT_EQ(values[8], 2);
  EXPECT_EQ(splits.test.count, 0);
  ASSERT_EQ(splits.train.notes.size(), 1u);
  EXPECT_SAYS(splits.train.notes[0], "no class, because there is no picture in it: " + folder.path() + "/empty");
}

TEST(PictureFolder, pictures_of_other_kinds_are_left_out_with_a_note) {
  const TemporaryFolder folder;
  put(folder, "train/a/1.png", grey_png(1));
  put(folder, "train/a/2.BMP", "");
  put(folder, "train/b/1.png", grey_png(2));
  put(folder, "test/a/1.png", grey_png(1));
  put(folder, "test/a/2.webp", "");
  put(folder, "test/b/Thumbs.db", "");
  const Splits splits = load(folder.path());
  ASSERT_EQ(splits.notes.size(), 2u);
  EXPECT_EQ(splits.notes[0], "left out, not PNG or JPEG: " + folder.path() + "/train/a/2.BMP and 1 more");
  EXPECT_EQ(splits.notes[1], "no class, because there is no picture in it: " + folder.path() + "/test/b");
}

TEST(PictureFolder, one_picture_in_colour_makes_all_of_them_so_unless_the_model_wants_grey) {
  const TemporaryFolder folder;
  put(folder, "a/1.png", grey_png('\x64'));
  put(folder, "b/1.png", red_png());
  const Splits colour = load_picture_folder(folder.path(), {});
  EXPECT_EQ(colour.train.example_shape, (Shape{3, 2, 2}));
  EXPECT_EQ(colour.train.values.values<uint8_t>()[4], 0x64);
  EXPECT_EQ(colour.train.values.values<uint8_t>()[12], 255);
  EXPECT_EQ(colour.train.values.values<uint8_t>()[16], 0);
  const Splits grey = load_picture_folder(folder.path(), {.channels = 1});
  EXPECT_EQ(grey.train.example_shape, (Shape{1, 2, 2}));
  EXPECT_EQ(grey.train.values.values<uint8_t>()[4], 76);
}

TEST(PictureFolder, train_and_test_below_are_the_splits) {
  const TemporaryFolder folder;
  put(folder, "train/a/1.png", grey_png(1));
  put(folder, "train/b/1.png", grey_png(2));
  put(folder, "val/b/1.png", grey_png(3));
  const Splits splits = load(folder.path());
  EXPECT_EQ(splits.train.count, 2);
  EXPECT_EQ(splits.test.count, 1);
  EXPECT_EQ(splits.test.labels, (std::vector<int32_t>{1}));
  EXPECT_EQ(splits.test.class_names, (Names{"a", "b"}));
  put(folder, "test/c/1.png", grey_png(3));
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.path()); }), "a folder 'c' that the training set has not");
}

TEST(PictureFolder, a_folder_for_validation_beside_the_other_two_is_the_validation_set) {
  for (const char* name : {"val", "valid", "validation"}) {
    const TemporaryFolder folder;
    put(folder, "train/a/1.png", grey_png(1));
    put(folder, "train/b/1.png", grey_png(2));
    put(folder, "test/a/1.png", grey_png(3));
    put(folder, std::string(name) + "/b/1.png", grey_png(4));
    const Splits splits = load(folder.path());
    EXPECT_EQ(splits.train.count, 2) << name;
    EXPECT_EQ(splits.test.labels, (std::vector<int32_t>{0})) << name;
    EXPECT_EQ(splits.validation.labels, (std::vector<int32_t>{1})) << name;
    EXPECT_EQ(splits.validation.values.values<uint8_t>()[0], 4) << name;
    EXPECT_SAYS(message_of<UsageError>([&] { load(folder.path(), {.validation_fraction = 0.5}); }),
                "has a validation set of its own, of 1 examples; leave --validation out");
  }
}

TEST(PictureFolder, without_a_test_set_a_fifth_is_split_off_by_the_seed) {
  const TemporaryFolder folder;
  for (char i = 0; i < 10; ++i)
    put(folder, std::string(i < 5 ? "a/" : "b/") + static_cast<char>('0' + i) + ".png", grey_png(i));
  const Splits first = load(folder.path(), {.seed = 1}), again = load(folder.path(), {.seed = 1});
  EXPECT_EQ(first.train.count, 8);
  EXPECT_EQ(first.test.count, 2);
  EXPECT_TRUE(std::ranges::equal(first.test.values.values<uint8_t>(), again.test.values.values<uint8_t>()));
}

TEST(PictureFolder, sizes_must_agree_unless_one_is_stated) {
  const TemporaryFolder folder;
  put(folder, "a/1.png", grey_png(9, 2, 2));
  put(folder, "a/2.png", grey_png(8, 3, 5));
  const std::string message = message_of<UsageError>([&] { load_picture_folder(folder.path(), {}); });
  EXPECT_SAYS(message, "a/2.png is 3 wide and 5 high");
  EXPECT_SAYS(message, "--resize");
  const Splits splits = load_picture_folder(folder.path(), {.preprocess = {.resize = ImageSize{4, 6}}});
  EXPECT_EQ(splits.train.example_shape, (Shape{1, 4, 6}));
  const auto values = splits.train.values.values<uint8_t>();
  EXPECT_TRUE(std::all_of(values.begin(), values.begin() + 24, [](uint8_t v) { return v == 9; }));
  EXPECT_TRUE(std::all_of(values.begin() + 24, values.end(), [](uint8_t v) { return v == 8; }));
}

TEST(PictureFolder, a_bad_picture_is_named) {
  const TemporaryFolder folder;
  put(folder, "a/1.png", grey_png(1, 40, 40));
  const std::string whole = grey_png(2, 40, 40);
  put(folder, "b/bad.png", whole.substr(0, 60));
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.path()); }), "b/bad.png");
  put(folder, "b/bad.png", "no picture at all");
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.path()); }), "b/bad.png");
}

TEST(PictureFolder, files_of_a_known_set_come_first_and_other_folders_are_refused) {
  const TemporaryFolder folder;
  EXPECT_FALSE(is_picture_folder(folder.path()));
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.path()); }), "folders of PNG or JPEG pictures");
  put(folder, "loose.png", grey_png(1));
  EXPECT_FALSE(is_picture_folder(folder.path()));
  EXPECT_EQ(pictures_in(folder.path()), (Names{folder.path() + "/loose.png"}));
  put(folder, "class/notes.txt", "");
  EXPECT_THROW(pictures_in(folder.path() + "/class"), UsageError);
}

}  // namespace
}  // namespace evenkeel::data
