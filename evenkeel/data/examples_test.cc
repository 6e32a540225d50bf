// load_examples and decode_png.
#include <array>
#include <filesystem>

#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/data/png.h"
#include "evenkeel/data/files_testing.h"
#include "evenkeel/data/pictures_testing.h"

namespace evenkeel::data {
namespace {

std::vector<uint8_t> decode(const std::string& file, const Shape& shape) {
  return decode_png(as_bytes(file), "f.png", shape);
}

using Pixels = std::vector<uint8_t>;

TEST(Png, grey_is_taken_as_it_is_or_repeated) {
  const std::string file = png(2, 2, kGrey, std::string("\x00\x01\x80\xff", 4));
  EXPECT_EQ(decode(file, {1, 2, 2}), (Pixels{0, 1, 128, 255}));
  EXPECT_EQ(decode(file, {3, 2, 2}), (Pixels{0, 1, 128, 255, 0, 1, 128, 255, 0, 1, 128, 255}));
  for (int v = 0; v < 256; ++v) {  // colour and back leaves every grey
    EXPECT_EQ(decode(png(1, 1, kGrey, std::string(1, static_cast<char>(v))), {1, 1, 1}),
              Pixels{static_cast<uint8_t>(v)});
  }
}

TEST(Png, colour_is_split_into_planes_or_weighted_to_grey) {
  const std::string file = png(2, 1, kRgb, std::string("\xff\x00\x00\x01\x02\x03", 6));
  EXPECT_EQ(decode(file, {3, 1, 2}), (Pixels{255, 1, 0, 2, 0, 3}));
  EXPECT_EQ(decode(file, {1, 1, 2}), (Pixels{76, 2}));  // 0.299 * 255 = 76.2; 1.8
}

TEST(Png, palettes_small_depths_and_16_bits_become_bytes) {
  const std::string palette = chunk("PLTE", "abcdef");
  EXPECT_EQ(decode(png(2, 1, kPalette, std::string("\x01\x00", 2), palette), {3, 1, 2}),
            (Pixels{'d', 'a', 'e', 'b', 'f', 'c'}));
  EXPECT_EQ(decode(png(2, 1, kGrey, "\x40", "", 1), {1, 1, 2}), (Pixels{0, 255}));
  EXPECT_EQ(decode(png(1, 1, kGrey, "\x80\x80", "", 16), {1, 1, 1}), Pixels{128});
}

TEST(Png, alpha_lies_over_black) {
  EXPECT_EQ(decode(png(1, 1, kRgba, "\xff\x80\x40\x80"), {3, 1, 1}), (Pixels{128, 64, 32}));
  EXPECT_EQ(decode(png(1, 1, kGreyAlpha, std::string("\xff\x00", 2)), {1, 1, 1}), Pixels{0});
}

TEST(Png, another_size_is_named_before_a_pixel_is_decoded) {
  const std::string message = message_of<UsageError>([] { decode(png(3, 1, kGrey, "abc"), {1, 28, 28}); });
  EXPECT_SAYS(message, "3 wide and 1 high");
  EXPECT_SAYS(message, "expects 28 by 28");
  EXPECT_THROW(decode(png(1000000, 1000000, kGrey, "abc"), {1, 28, 28}), Error);
  EXPECT_THROW(decode(png(1, 1, kGrey, "a"), {2, 1, 1}), UsageError);
}

TEST(Png, no_cut_or_damaged_byte_brings_it_down) {
  const std::string file = png(2, 2, kRgb, "abcdefghijkl");
  for (size_t n = 0; n + 12 < file.size(); ++n) {  // libpng may do without IEND
    EXPECT_THROW(decode(file.substr(0, n), {3, 2, 2}), FormatError) << n;
  }
  expect_no_crash_on_damage(file, [](const std::string& f) { decode(f, {3, 2, 2}); });
}

TEST(LoadExamples, pictures_arrays_and_rows_of_bytes_are_the_same_examples) {
  const TemporaryFolder folder;
  const std::string pixels = "abcdef";
  const Dataset set = load_examples(
      {folder.write("a.png", png(3, 2, kGrey, pixels)), folder.write("b.npy", npy("|u1", "(2, 3)", pixels)),
       folder.write("c.npy", npy("|u1", "(2, 1, 2, 3)", pixels + pixels)),
       folder.write("d.csv", "97,98,99,100,101,102\n97,98,99,100,101,102\n")},
      {1, 2, 3});
  EXPECT_EQ(set.count, 6);
  EXPECT_EQ(set.values.dtype(), DType::kU8);
  EXPECT_EQ(set.labels, std::vector<int32_t>(6, -1));
  for (size_t i = 0; i < 36; ++i) EXPECT_EQ(set.values.values<uint8_t>()[i], 'a' + i % 6);
  const std::string f = folder.path();
  EXPECT_EQ(set.example_names, (std::vector<std::string>{f + "/a.png", f + "/b.npy", f + "/c.npy:0", f + "/c.npy:1",
                                                         f + "/d.csv:1", f + "/d.csv:2"}));
  const BatchReader reader(set, {{0.5}, {0.25}});
  std::array<float, 12> x;
  reader.read(std::array<int64_t, 2>{0, 5}, 0, 1, x.data(), nullptr);
  for (size_t k = 0; k < 6; ++k) EXPECT_EQ(x[k], x[k + 6]);
}

TEST(LoadExamples, jpegs_arrays_in_npz_and_folders_are_read_too) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() + "/d");
  const std::string grey = png(3, 2, kGrey, "abcdef");
  folder.write("d/2.png", grey);
  folder.write("d/1.jpg", jpeg(3, 2, std::string(6, 'a'), {.colours = JCS_GRAYSCALE}));
  folder.write("d/notes.txt", "");
  const std::string npz = folder.write(
      "x.npz", zip({{"y.npy", npy("|u1", "(2,)", "ab")}, {"x.npy", npy("|u1", "(2, 2, 3)", "abcdefabcdef")}}));
  const Dataset set = load_examples({folder.path() + "/d", npz}, {1, 2, 3});
  EXPECT_EQ(set.example_names,
            (std::vector<std::string>{folder.path() + "/d/1.jpg", folder.path() + "/d/2.png", npz + ":0", npz + ":1"}));
  const auto values = set.values.values<uint8_t>();
  EXPECT_EQ(std::string(values.begin(), values.end()), "aaaaaaabcdefabcdefabcdef");
}

TEST(LoadExamples, pictures_of_another_size_are_resized_where_that_is_stated) {
  const TemporaryFolder folder;
  const std::string picture = folder.write("a.png", png(4, 2, kGrey, "aaaaaaaa"));
  const Dataset set = load_examples({picture}, {1, 3, 3}, {}, {.resize = ImageSize{3, 3}});
  EXPECT_EQ(set.values.values<uint8_t>()[8], 'a');
  EXPECT_SAYS(message_of<UsageError>([&] { load_examples({picture}, {1, 3, 3}); }), "--resize 3x3");
  EXPECT_SAYS(message_of<UsageError>([&] {
                load_examples({picture}, {1, 3, 3}, {}, {.resize = ImageSize{4, 4}});
              }),
              "--resize 4x4 makes no examples");
}

TEST(LoadExamples, stated_values_cannot_mean_bytes_and_floats_at_once) {
  const TemporaryFolder folder;
  const float half = 0.5f;
  const std::vector<std::string> files = {
      folder.write("a.png", png(1, 1, kGrey, "\xff")),
      folder.write("b.npy", npy("<f4", "(1, 1)", std::string(reinterpret_cast<const char*>(&half), 4)))};
  EXPECT_SAYS(message_of<UsageError>([&] {
                load_examples(files, {1, 1, 1}, {}, {.mean = {0.5}});
              }),
              "one after the other");
}

TEST(LoadExamples, floats_beside_bytes_turn_all_into_floats) {
  const TemporaryFolder folder;
  const float half = 0.5f;
  const std::string raw(reinterpret_cast<const char*>(&half), 4);
  const Dataset set = load_examples(
      {folder.write("a.png", png(1, 1, kGrey, "\xff")), folder.write("b.npy", npy("<f4", "(1, 1)", raw))}, {1, 1, 1});
  EXPECT_EQ(set.values.dtype(), DType::kF32);
  EXPECT_EQ(set.values.values<float>()[0], 1.0f);
  EXPECT_EQ(set.values.values<float>()[1], 0.5f);
}

TEST(LoadExamples, rows_of_a_table_have_features_only) {
  const TemporaryFolder folder;
  const std::string path = folder.write("t.csv", "a,b\n1.5,2\n3,4\n");
  const Dataset set = load_examples({path}, {2});
  EXPECT_EQ(set.count, 2);
  EXPECT_EQ(set.values.values<float>()[0], 1.5f);
  EXPECT_EQ(set.example_names[1], path + ":3");
  EXPECT_SAYS(message_of<UsageError>([&] { load_examples({path}, {1}); }), "label column");
  EXPECT_SAYS(message_of<UsageError>([&] { load_examples({path}, {7}); }), "expects 7 features");
}

TEST(LoadExamples, refuses_what_does_not_fit_the_model) {
  const TemporaryFolder folder;
  const std::string array = folder.write("a.npy", npy("|u1", "(2, 3)", "abcdef"));
  EXPECT_SAYS(message_of<UsageError>([&] {
                load_examples({array}, {1, 28, 28});
              }),
              "shape [2, 3], the model expects examples of [1, 28, 28]");
  const std::string picture = folder.write("a.png", png(1, 1, kGrey, "a"));
  EXPECT_SAYS(message_of<UsageError>([&] { load_examples({picture}, {4}); }), "4 features");
  EXPECT_SAYS(message_of<UsageError>([&] { load_examples({"none.png"}, {1, 1, 1}); }), "no file");
  EXPECT_THROW(load_examples({folder.write("a.bmp", "BM")}, {1, 1, 1}), UsageError);
  EXPECT_THROW(load_examples({folder.write("b.png", "no png")}, {1, 1, 1}), FormatError);
  EXPECT_THROW(load_examples({}, {1, 1, 1}), UsageError);
}

TEST(LoadExamples, bytes_are_put_on_the_scale_that_the_model_knows) {
  const TemporaryFolder folder;
  const std::string picture = folder.write("a.png", png(1, 1, kGrey, "\xff"));
  const std::string wide = folder.write("b.npy", npy("<i4", "(1, 1)", std::string("\x80\0\0\0", 4)));
  const Dataset unit = load_examples({picture, wide}, {1, 1, 1}, {.range = ValueRange{0, 1}});
  EXPECT_EQ(unit.values.dtype(), DType::kU8);
  EXPECT_EQ(unit.values.values<uint8_t>()[1], 128);
  const Dataset whole = load_examples({picture, wide}, {1, 1, 1}, {.range = ValueRange{0, 255}});
  ASSERT_EQ(whole.values.dtype(), DType::kF32);
  EXPECT_EQ(whole.values.values<float>()[0], 255.0f);
  EXPECT_EQ(whole.values.values<float>()[1], 128.0f);
  EXPECT_SAYS(message_of<UsageError>([&] {
                load_examples({picture}, {1, 1, 1}, {.range = ValueRange{-2, 2}});
              }),
              "a.png: found");
}

TEST(LoadExamples, rows_of_an_image_that_are_no_bytes_are_taken_as_the_model_saw_them) {
  const TemporaryFolder folder;
  const std::string rows = folder.write("a.csv", "0.5,1\n");
  EXPECT_EQ(load_examples({rows}, {1, 1, 2}, {.range = ValueRange{0, 1}}).values.values<float>()[0], 0.5f);
  const std::string large = folder.write("b.csv", "127.5,255\n");
  EXPECT_SAYS(message_of<UsageError>([&] {
                load_examples({large}, {1, 1, 2}, {.range = ValueRange{0, 1}});
              }),
              "b.csv: found values from 127.5 to 255");
}

TEST(LoadExamples, columns_are_taken_by_name_and_channels_last_gets_a_hint) {
  const TemporaryFolder folder;
  const std::string path = folder.write("t.csv", "b,a\n1,2\n");
  EXPECT_EQ(load_examples({path}, {2}, {.feature_names = {"a", "b"}}).values.values<float>()[0], 2.0f);
  const std::string array = folder.write("a.npy", npy("|u1", "(2, 1, 3)", "abcdef"));
  EXPECT_SAYS(message_of<UsageError>([&] { load_examples({array}, {3, 2, 1}); }), "x.transpose(2, 0, 1)");
}

}  // namespace
}  // namespace evenkeel::data
