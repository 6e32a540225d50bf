#include "evenkeel/data/npy.h"

#include <bit>
#include <cstring>
#include <limits>

#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

// A file as numpy writes it, header padded to 64 bytes.
std::string npy(const std::string& dictionary, const std::string& values, char version = 1) {
  const size_t begin = version == 1 ? 10 : 12;
  std::string header = dictionary;
  while ((begin + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file = std::string("\x93NUMPY") + version + '\0';
  for (size_t i = 0; i < (version == 1 ? 2u : 4u); ++i) {
    file += static_cast<char>(header.size() >> (8 * i));
  }
  return file + header + values;
}

std::string dictionary(const std::string& descr, const std::string& shape, const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

template <class T>
std::string raw(std::initializer_list<T> values) {
  std::string bytes;
  for (const T value : values) bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
  return bytes;
}

NpyArray parse(const std::string& file) { return parse_npy(as_bytes(file), "f"); }

std::vector<float> floats(const std::string& file) {
  const NpyArray array = parse(file);
  std::vector<float> out(static_cast<size_t>(array.count));
  npy_floats(array, 0, "f", out);
  return out;
}

const std::string kFloats = npy(dictionary("<f4", "(2, 3)"), raw<float>({1, 2, 3, -4, 5.5f, 6}));

TEST(Npy, reads_every_type_and_version) {
  const std::vector<float> expected = {1, 2};
  for (const char version : {'\1', '\2', '\3'}) {
    EXPECT_EQ(floats(npy(dictionary("|u1", "(2,)"), raw<uint8_t>({1, 2}), version)), expected);
    EXPECT_EQ(floats(npy(dictionary("<i4", "(2,)"), raw<int32_t>({1, 2}), version)), expected);
    EXPECT_EQ(floats(npy(dictionary("<i8", "(2,)"), raw<int64_t>({1, 2}), version)), expected);
    EXPECT_EQ(floats(npy(dictionary("<f4", "(2, 1)"), raw<float>({1, 2}), version)), expected);
    EXPECT_EQ(floats(npy(dictionary("<f8", "(1, 2)"), raw<double>({1, 2}), version)), expected);
  }
  const NpyArray array = parse(kFloats);
  EXPECT_EQ(array.shape, (Shape{2, 3}));
  EXPECT_EQ(array.type, NpyType::kF32);
}

TEST(Npy, refuses_fortran_order_objects_and_other_types_in_one_sentence) {
  const auto says = [](const std::string& file) { return message_of<FormatError>([&] { parse(file); }); };
  EXPECT_SAYS(says(npy(dictionary("<f4", "(2, 2)", "True"), raw<float>({1, 2, 3, 4}))), "Fortran order");
  EXPECT_SAYS(says(npy(dictionary("|O", "(1,)"), "x")), "Python objects");
  EXPECT_SAYS(says(npy(dictionary("<U3", "(1,)"), std::string(12, 'x'))), "np.unique(y, return_inverse=True)");
  EXPECT_SAYS(says(npy(dictionary(">f4", "(1,)"), "abcd")), "'>f4'");
  EXPECT_SAYS(says(npy(dictionary("<c8", "(1,)"), "abcdefgh")), "'<c8'");
  EXPECT_SAYS(says(npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "abcd")),
              "structured type");
}

TEST(Npy, refuses_every_cut_and_what_follows_the_end) {
  expect_every_cut_refused(kFloats, [](const std::string& f) { parse(f); });
  EXPECT_SAYS(message_of<FormatError>([] { parse(kFloats + "x"); }), "promises [2, 3], 24 bytes");
}

TEST(Npy, survives_any_damaged_byte) {
  expect_no_crash_on_damage(kFloats, [](const std::string& f) { floats(f); });
}

TEST(Npy, refuses_shapes_that_overflow_or_lie) {
  for (const char* shape : {"(4611686018427387904, 4)", "(99999999999999999999,)", "(-1,)", "(1e3,)",
                            "(1, 1, 1, 1, 1, 1, 1, 1, 1)", "(1 1)", "(1", "1"}) {
    EXPECT_THROW(parse(npy(dictionary("<f4", shape), "abcd")), FormatError) << shape;
  }
  std::string lies = kFloats;
  lies[8] = lies[9] = '\xff';  // a header of 65535 bytes
  EXPECT_SAYS(message_of<FormatError>([&] { parse(lies); }), "inside the NPY header");
}

TEST(Npy, refuses_other_versions_and_magics) {
  std::string file = kFloats;
  file[6] = 4;
  EXPECT_SAYS(message_of<FormatError>([&] { parse(file); }), "version 4 at offset 6");
  EXPECT_SAYS(message_of<FormatError>([] { parse("PK\x03\x04 a zip file"); }), "offset 0");
}

TEST(Npy, refuses_values_that_are_no_finite_float) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_SAYS(message_of<FormatError>([&] {
                floats(npy(dictionary("<f8", "(2,)"), raw<double>({1, nan})));
              }),
              "index 1");
  EXPECT_THROW(floats(npy(dictionary("<f8", "(1,)"), raw<double>({1e300}))), FormatError);
}

TEST(Npy, reads_labels_and_refuses_those_out_of_range) {
  const auto labels = [](const std::string& file, int64_t classes) { return npy_labels(parse(file), "f", classes); };
  const std::string file = npy(dictionary("<i8", "(3,)"), raw<int64_t>({2, 0, 1}));
  EXPECT_EQ(labels(file, 3), (std::vector<int32_t>{2, 0, 1}));
  EXPECT_SAYS(message_of<FormatError>([&] { labels(file, 2); }), "label 2 at index 0 is outside 0..1");
  EXPECT_THROW(labels(npy(dictionary("<i8", "(1,)"), raw<int64_t>({-1})), 9), FormatError);
  EXPECT_THROW(labels(npy(dictionary("<i8", "(1,)"), raw<int64_t>({int64_t{1} << 40})), 65536), FormatError);
  EXPECT_SAYS(message_of<FormatError>([&] { labels(kFloats, 9); }), "[2, 3]");
  EXPECT_SAYS(message_of<FormatError>([&] { labels(npy(dictionary("<f4", "(1,)"), raw<float>({1})), 9); }),
              "whole numbers");
}

TEST(Npy, a_value_too_large_is_written_shortly) {
  EXPECT_SAYS(message_of<FormatError>([] { floats(npy(dictionary("<f8", "(1,)"), raw<double>({1e300}))); }),
              "value 1e+300 at");
}

TEST(Npy, whole_numbers_of_any_integer_type_are_pixels) {
  const std::string wide = npy(dictionary("<i8", "(3,)"), raw<int64_t>({0, 255, 7}));
  ASSERT_TRUE(holds_pixels(parse(wide)));
  std::vector<uint8_t> out(3);
  npy_pixels(parse(wide), out);
  EXPECT_EQ(out, (std::vector<uint8_t>{0, 255, 7}));
  EXPECT_FALSE(holds_pixels(parse(npy(dictionary("<i4", "(2,)"), raw<int32_t>({0, 256})))));
  EXPECT_FALSE(holds_pixels(parse(npy(dictionary("<i8", "(1,)"), raw<int64_t>({-1})))));
  EXPECT_FALSE(holds_pixels(parse(npy(dictionary("<f4", "(1,)"), raw<float>({1})))));
}

}  // namespace
}  // namespace evenkeel::data
