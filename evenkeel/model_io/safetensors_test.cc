#include "evenkeel/model_io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A file of any header and data, however wrong.
std::vector<std::byte> raw_file(const std::string& header, size_t data_bytes) {
  std::vector<std::byte> bytes(8 + header.size() + data_bytes);
  const uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  for (size_t i = 8 + header.size(); i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

std::string refusal(const std::string& header, size_t data_bytes) {
  return message_of<FormatError>([&] { parse_safetensors(raw_file(header, data_bytes), "x.st"); });
}

void expect_equal(const TensorFile& a, const TensorFile& b) {
  EXPECT_EQ(a.metadata, b.metadata);
  ASSERT_EQ(a.carried.size(), b.carried.size());
  for (size_t i = 0; i < a.carried.size(); ++i) {
    EXPECT_EQ(a.carried[i].name, b.carried[i].name);
    EXPECT_EQ(a.carried[i].dtype, b.carried[i].dtype);
    EXPECT_EQ(a.carried[i].shape, b.carried[i].shape);
    EXPECT_EQ(a.carried[i].data, b.carried[i].data) << a.carried[i].name;
  }
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const Tensor& x = a.tensors[i].second;
    const Tensor& y = b.tensors[i].second;
    EXPECT_EQ(a.tensors[i].first, b.tensors[i].first);
    EXPECT_EQ(x.dtype(), y.dtype());
    EXPECT_EQ(x.shape(), y.shape());
    ASSERT_EQ(x.bytes(), y.bytes());
    if (x.bytes() > 0) {
      EXPECT_EQ(std::memcmp(x.raw(), y.raw(), x.bytes()), 0) << a.tensors[i].first;
    }
  }
}

// Every element type, a scalar, empty tensors, odd sizes, and every kind of float that a copy by
// value could change.
TensorFile rich_file() {
  TensorFile file;
  file.metadata = {{"format", "pt"}, {"", "empty key"}, {"text", "\"quotes\" \\ \n \xc3\xa4"}};
  Tensor bytes(DType::kU8, {3});
  bytes.values<uint8_t>()[1] = 255;
  file.tensors.emplace_back("u8", std::move(bytes));
  Tensor floats(DType::kF32, {2, 3});
  const uint32_t patterns[] = {0x7fc00000, 0x7f800001, 0xffc12345, 0x80000000, 0x00000001, 0xff800000};
  std::memcpy(floats.raw(), patterns, sizeof patterns);
  file.tensors.emplace_back("layer1.0.weight", std::move(floats));
  Tensor scalar(DType::kI64, {});
  scalar.values<int64_t>()[0] = std::numeric_limits<int64_t>::min();
  file.tensors.emplace_back("num_batches_tracked", std::move(scalar));
  file.tensors.emplace_back("empty", Tensor(DType::kF32, {0, 5}));
  Tensor doubles(DType::kF64, {1, 1, 2});
  const uint64_t pattern = 0x7ff0000000000001;  // a signalling NaN
  std::memcpy(doubles.raw(), &pattern, sizeof pattern);
  file.tensors.emplace_back("f64", std::move(doubles));
  file.tensors.emplace_back("empty too", Tensor(DType::kU8, {0}));
  Tensor ints(DType::kI32, {1});
  ints.values<int32_t>()[0] = -7;
  file.tensors.emplace_back("\xce\xb3 \"quoted\"", std::move(ints));
  return file;
}

TEST(Safetensors, a_file_written_and_read_is_the_same_to_the_bit) {
  const TestFolder folder;
  const TensorFile file = rich_file();
  write_safetensors(folder / "m.safetensors", file);
  expect_equal(read_safetensors(folder / "m.safetensors"), file);
  EXPECT_EQ(read_file(folder / "m.safetensors"), serialize_safetensors(file));
  EXPECT_EQ(folder.names().size(), 1u);
}

TEST(Safetensors, an_empty_file_of_tensors_is_legal) {
  const std::vector<std::byte> bytes = serialize_safetensors(TensorFile{});
  EXPECT_EQ(bytes.size(), 16u);
  const TensorFile file = parse_safetensors(bytes, "x");
  EXPECT_TRUE(file.tensors.empty());
  EXPECT_TRUE(file.metadata.empty());
}

TEST(Safetensors, equal_content_gives_equal_bytes) {
  EXPECT_EQ(serialize_safetensors(rich_file()), serialize_safetensors(rich_file()));
  const TensorFile again = parse_safetensors(serialize_safetensors(rich_file()), "x");
  EXPECT_EQ(serialize_safetensors(again), serialize_safetensors(rich_file()));
}

// Readers that map the file need every element aligned.
TEST(Safetensors, data_begin_at_a_multiple_of_8_and_wide_elements_come_first) {
  for (size_t length = 0; length < 9; ++length) {
    TensorFile file;
    file.tensors.emplace_back("bytes" + std::string(length, 'x'), Tensor(DType::kU8, {3}));
    file.tensors.emplace_back("double", Tensor(DType::kF64, {1}));
    file.tensors[1].second.values<double>()[0] = 2.5;
    const std::vector<std::byte> bytes = serialize_safetensors(file);
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    EXPECT_EQ((8 + header) % 8, 0u);
    double value = 0;
    std::memcpy(&value, bytes.data() + 8 + header, 8);
    EXPECT_EQ(value, 2.5);
  }
}

TEST(Safetensors, find_gives_a_tensor_by_name_or_nothing) {
  TensorFile file = rich_file();
  ASSERT_NE(file.find("u8"), nullptr);
  EXPECT_EQ(file.find("u8")->values<uint8_t>()[1], 255);
  EXPECT_EQ(std::as_const(file).find("no"), nullptr);
}

TEST(Safetensors, a_file_cut_at_any_byte_is_refused) {
  const std::vector<std::byte> bytes = serialize_safetensors(rich_file());
  for (size_t size = 0; size < bytes.size(); ++size) {
    // A copy of just that size, so that a sanitizer sees a read past the end.
    const std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_THAT(message_of<FormatError>([&] { parse_safetensors(cut, "x.st"); }),
                HasSubstr("x.st is not a valid safetensors file"))
        << size;
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_THROW(parse_safetensors(longer, "x.st"), FormatError);
}

TEST(Safetensors, refuses_a_header_length_that_lies) {
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{17}, uint64_t{100'000'001}, uint64_t{1} << 63,
                                ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::vector<std::byte> bytes = raw_file("{}", 0);
    std::memcpy(bytes.data(), &length, 8);
    EXPECT_THROW(parse_safetensors(bytes, "x"), FormatError) << length;
  }
}

TEST(Safetensors, refuses_a_header_that_lies) {
  struct Case {
    const char* header;
    size_t data_bytes;
    const char* part_of_message;
  };
  const Case cases[] = {
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}})",
       8, "twice"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", 0, "twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "twice"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}})", 8, "data have 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "data have 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}})", 8, "data have 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]}})", 8, "no integer"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,0]}})", 8, "data have 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "do not fit its shape"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 8, "do not fit its shape"},
      {R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,8]}})", 8, "do not fit its shape"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "too many elements"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0, "do not fit its shape"},
      {R"({"a":{"dtype":"U8","shape":[9223372036854775807,9223372036854775807,0],"data_offsets":[0,0]}})", 0,
       "too many elements"},
      {R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0, "too large"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1, "do not fit its shape"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
       5, "a hole"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3, "a hole"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "an overlap"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       2, "an overlap"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})",
       2, "an overlap"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 3, "there are 3"},
      {R"({})", 1, "there are 1"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "negative number"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "no integer"},
      {R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", 8, "found a string"},
      {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8, "an array for shape"},
      {R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8, "found an array"},
      {R"({"a":{"dtype":1,"shape":[2],"data_offsets":[0,8]}})", 8, "a string for dtype"},
      {R"({"a":{"dtype":null,"shape":[2],"data_offsets":[0,8]}})", 8, "found null"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8, "1 data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", 8, "more than two"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8, "lacks data_offsets"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8, "lacks shape"},
      {R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8, "lacks dtype"},
      {R"({"a":{"dtype":"F32","shape":[2],"offsets":[0,8]}})", 8, "has the key \"offsets\""},
      {R"({"a":[0,8]})", 8, "an object for \"a\""},
      {R"({"a":true})", 0, "found a boolean"},
      {R"({"a":{"b":{"c":{}}}})", 0, "has the key \"b\""},
      {R"({"__metadata__":{"k":1}})", 0, "a string for the metadata"},
      {R"({"__metadata__":{"k":{}}})", 0, "a string for the metadata"},
      {R"({"__metadata__":"k"})", 0, "an object for"},
      {R"({"a":)", 0, "JSON is not valid"},
      {R"({} {})", 0, "JSON is not valid"},
      {R"({}x)", 0, "JSON is not valid"},
      {"{\"__metadata__\":{\"k\":\"\xff\"}}", 0, "JSON is not valid"},
      {R"( {})", 0, "does not start with '{'"},
      {R"([])", 0, "does not start with '{'"},
      {"\xef\xbb\xbf{}", 0, "does not start with '{'"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(refusal(c.header, c.data_bytes), AllOf(HasSubstr("x.st"), HasSubstr(c.part_of_message))) << c.header;
  }
}

TEST(Safetensors, deep_nesting_and_many_dimensions_are_refused_without_harm) {
  const std::string deep(1'000'000, '[');
  EXPECT_NE(refusal("{\"a\":" + deep, 0), "");
  EXPECT_NE(refusal("{\"a\":{\"dtype\":\"F32\",\"shape\":" + deep, 0), "");
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  EXPECT_NE(refusal(objects, 0), "");
  std::string ones = "1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":[)" + ones + R"(],"data_offsets":[0,1]}})", 1),
              HasSubstr("more than 64 dimensions"));
}

TEST(Safetensors, names_in_messages_are_cut_and_free_of_control_characters) {
  const std::string message = refusal("{\"\\u001b[31m" + std::string(10000, 'n') + "\":[]}", 0);
  EXPECT_LT(message.size(), 500u);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
}

TEST(Safetensors, keys_and_ranges_may_come_in_any_order_and_spaces_may_follow) {
  const TensorFile file = parse_safetensors(
      raw_file(
          R"({"b":{"data_offsets":[2,4],"shape":[2],"dtype":"U8"},"e":{"dtype":"F32","shape":[3,0],"data_offsets":[2,2]},)"
          R"("a":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]},"__metadata__":{"k":"v"}}   )",
          4),
      "x");
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].first, "b");
  EXPECT_EQ(file.tensors[1].second.shape(), (Shape{3, 0}));
  EXPECT_EQ(file.metadata.at("k"), "v");
  EXPECT_EQ(static_cast<uint8_t>(file.find("b")->values<uint8_t>()[0] - file.find("a")->values<uint8_t>()[0]), 2);
}

TEST(Safetensors, empty_tensors_may_share_an_offset_at_a_boundary) {
  const TensorFile file = parse_safetensors(
      raw_file(
          R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"F64","shape":[0],"data_offsets":[0,0]},)"
          R"("c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"d":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})",
          1),
      "x");
  EXPECT_EQ(file.tensors.size(), 4u);
}

TEST(Safetensors, element_types_the_program_lacks_are_carried_to_the_byte) {
  const std::vector<std::byte> bytes = raw_file(
      R"({"half":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"mask":{"dtype":"BOOL","shape":[],"data_offsets":[4,5]},)"
      R"("f8":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[5,8]},"f4":{"dtype":"F4","shape":[2],"data_offsets":[8,9]},)"
      R"("new":{"dtype":"Q7_X","shape":[100],"data_offsets":[9,10]},"kept":{"dtype":"F32","shape":[1],"data_offsets":[10,14]}})",
      14);
  const TensorFile file = parse_safetensors(bytes, "x");
  ASSERT_EQ(file.carried.size(), 5u);
  EXPECT_EQ(file.carried[0].name, "half");
  EXPECT_EQ(file.carried[0].dtype, "BF16");
  EXPECT_EQ(file.carried[0].shape, (Shape{2}));
  EXPECT_EQ(file.carried[4].dtype, "Q7_X");
  EXPECT_EQ(file.carried[2].data, std::vector<std::byte>(bytes.end() - 9, bytes.end() - 6));
  ASSERT_EQ(file.tensors.size(), 1u);
  EXPECT_EQ(std::memcmp(file.find("kept")->raw(), bytes.data() + bytes.size() - 4, 4), 0);
  expect_equal(parse_safetensors(serialize_safetensors(file), "y"), file);
}

TEST(Safetensors, carried_tensors_are_aligned_among_the_others) {
  TensorFile file;
  file.tensors.emplace_back("bytes", Tensor(DType::kU8, {3}));
  file.carried.push_back({"half", "F16", {1}, std::vector<std::byte>(2)});
  file.tensors.emplace_back("floats", Tensor(DType::kF32, {1}));
  file.carried.push_back({"long", "U64", {1}, std::vector<std::byte>(8, std::byte{7})});
  const std::vector<std::byte> bytes = serialize_safetensors(file);
  EXPECT_EQ(bytes[bytes.size() - 17], std::byte{7}) << "8 bytes an element, then 4, 2, and 3 of 1";
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (const char* entry : {R"("long":{"dtype":"U64","shape":[1],"data_offsets":[0,8]})",
                            R"("floats":{"dtype":"F32","shape":[1],"data_offsets":[8,12]})",
                            R"("half":{"dtype":"F16","shape":[1],"data_offsets":[12,14]})",
                            R"("bytes":{"dtype":"U8","shape":[3],"data_offsets":[14,17]})"})
    EXPECT_THAT(text, HasSubstr(entry));
  expect_equal(parse_safetensors(bytes, "x"), file);
}

TEST(Safetensors, a_carried_tensor_whose_data_do_not_fit_is_not_written) {
  TensorFile file;
  file.carried.push_back({"half", "F16", {3}, std::vector<std::byte>(4)});
  EXPECT_THAT(message_of<UsageError>([&] { serialize_safetensors(file); }), HasSubstr("do not fit its shape"));
  file.carried[0].shape = {2};
  file.tensors.emplace_back("half", Tensor(DType::kU8, {1}));
  EXPECT_THAT(message_of<UsageError>([&] { serialize_safetensors(file); }), HasSubstr("two tensors are named"));
}

TEST(Safetensors, pickles_and_hdf5_are_refused_with_a_way_to_convert_them) {
  using namespace std::string_view_literals;
  for (const std::string_view magic : {"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9"sv, "PK\x03\x04\0\0\0\0\0"sv}) {
    EXPECT_THAT(message_of<FormatError>([&] { parse_safetensors(bytes_of(magic), "m.pt"); }),
                AllOf(HasSubstr("m.pt"), HasSubstr("safetensors.torch as s"), HasSubstr("s.save_file")));
  }
  EXPECT_THAT(message_of<FormatError>([&] { parse_safetensors(bytes_of("\x89HDF\r\n\x1a\n\0\0\0"sv), "m.h5"); }),
              AllOf(HasSubstr("m.h5"), HasSubstr("h5py")));
}

TEST(Safetensors, refuses_to_write_what_could_not_be_read_back) {
  TensorFile file;
  file.tensors.emplace_back("a", Tensor(DType::kF32, {1}));
  file.tensors.emplace_back("a", Tensor(DType::kF32, {1}));
  EXPECT_THAT(message_of<UsageError>([&] { serialize_safetensors(file); }), HasSubstr("\"a\""));
  file.tensors[1].first = "__metadata__";
  EXPECT_THROW(serialize_safetensors(file), UsageError);
  file.tensors[1].first = "\xff";
  EXPECT_THROW(serialize_safetensors(file), UsageError);
  file.tensors[1].first = "b";
  file.metadata["k"] = "\xc3";
  EXPECT_THROW(serialize_safetensors(file), UsageError);
  EXPECT_THROW(write_safetensors("/dev/full", rich_file()), IoError);
}

// Mutants of a good file: parsed or refused, and what is parsed can be written and read again.
// Sanitizers watch the rest.
TEST(Safetensors, mutated_files_are_refused_or_consistent) {
  const std::vector<std::byte> good = serialize_safetensors(rich_file());
  const std::string_view pieces[] = {
      "0",  "1",     "-1",  "18446744073709551615", "[", "]", "{", "}", ",", "\"F32\"", "null", "\"shape\":",
      "\"", "\\u00", "1e9", "__metadata__",         "",  "9"};
  std::mt19937_64 random(20240607);
  int refused = 0, parsed = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = good;
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int change = 0; change < changes && bytes.size() > 8; ++change) {
      uint64_t header = 0;
      std::memcpy(&header, bytes.data(), 8);
      const size_t reach = std::min<size_t>(bytes.size() - 8, header == 0 ? 1 : header);
      const auto at = static_cast<ptrdiff_t>(8 + random() % reach);
      if (random() % 2 == 0) {
        bytes[static_cast<size_t>(at)] = static_cast<std::byte>(random());
        continue;
      }
      // Another piece of JSON, and a length that agrees, so that the change is not found by the
      // length alone.
      const std::string_view piece = pieces[random() % std::size(pieces)];
      const auto erased =
          static_cast<ptrdiff_t>(std::min<size_t>(random() % 4, bytes.size() - static_cast<size_t>(at)));
      bytes.erase(bytes.begin() + at, bytes.begin() + at + erased);
      const auto inserted = std::as_bytes(std::span(piece));
      bytes.insert(bytes.begin() + at, inserted.begin(), inserted.end());
      header += piece.size() - static_cast<uint64_t>(erased);
      std::memcpy(bytes.data(), &header, 8);
    }
    try {
      TensorFile file = parse_safetensors(bytes, "x");
      ++parsed;
      size_t total = 0;
      for (const auto& [name, tensor] : file.tensors) total += tensor.bytes();
      EXPECT_LE(total, bytes.size());
      expect_equal(parse_safetensors(serialize_safetensors(file), "y"), file);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(parsed, 100) << "the mutations are too coarse to test what is accepted";
}

// Random files, by another way than rich_file: any number of tensors of any type and shape come
// back.
TEST(Safetensors, random_files_come_back_to_the_bit) {
  std::mt19937_64 random(7);
  const DType types[] = {DType::kF32, DType::kF64, DType::kI64, DType::kI32, DType::kU8};
  for (int round = 0; round < 200; ++round) {
    TensorFile file;
    const size_t tensors = random() % 12;
    for (size_t i = 0; i < tensors; ++i) {
      Shape shape(random() % 4);
      for (int64_t& extent : shape) extent = static_cast<int64_t>(random() % 5);
      Tensor tensor(types[random() % std::size(types)], shape);
      for (size_t b = 0; b < tensor.bytes(); ++b) tensor.raw()[b] = static_cast<std::byte>(random());
      file.tensors.emplace_back(std::to_string(random()), std::move(tensor));
    }
    if (random() % 2 == 0) file.metadata["round"] = std::to_string(round);
    expect_equal(parse_safetensors(serialize_safetensors(file), "x"), file);
  }
}

TEST(Safetensors, reads_a_network_written_by_the_reference_library) {
  const char* data = std::getenv("EVENKEEL_TEST_DATA");
  const std::string path =
      std::string(data != nullptr ? data : "../shared/data") + "/models/resnet20_cifar10.safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const TensorFile file = read_safetensors(path);
  EXPECT_EQ(file.tensors.size() + file.carried.size(), 97u);  // 98 keys, one of them the metadata
  EXPECT_EQ(file.metadata.at("format"), "pt");
  const Tensor* conv = file.find("module.conv1.weight");
  ASSERT_NE(conv, nullptr);
  EXPECT_EQ(conv->shape(), (Shape{16, 3, 3, 3}));
  for (const auto& [name, tensor] : file.tensors) {
    if (tensor.dtype() != DType::kF32) continue;
    for (const float value : tensor.values<float>()) ASSERT_TRUE(std::isfinite(value)) << name;
    if (name.ends_with("running_var")) {
      for (const float value : tensor.values<float>()) ASSERT_GE(value, 0.0f) << name;
    }
  }
  expect_equal(parse_safetensors(serialize_safetensors(file), "again"), file);
}

}  // namespace
}  // namespace evenkeel
