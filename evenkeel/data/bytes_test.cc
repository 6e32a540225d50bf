#include "evenkeel/data/bytes.h"

#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

std::string unpacked(const std::string& file, uint64_t limit = kUnpackLimit) {
  const Bytes bytes = unpack(as_bytes(file), "f", limit);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(Bytes, plain_and_gzip_give_the_same_bytes) {
  std::string text;
  for (uint32_t i = 0; i < 300000; ++i) text += static_cast<char>(i * i >> 3);
  EXPECT_EQ(unpacked(text), text);
  EXPECT_EQ(unpacked(gzip(text)), text);
  EXPECT_EQ(unpacked(""), "");
  EXPECT_EQ(unpacked(gzip("")), "");
}

TEST(Bytes, gzip_members_are_joined) { EXPECT_EQ(unpacked(gzip("abc") + gzip("") + gzip("def")), "abcdef"); }

TEST(Bytes, a_missing_file_is_a_usage_error_and_a_folder_too) {
  const TemporaryFolder folder;
  EXPECT_SAYS(message_of<UsageError>([&] { read_file(folder.path() + "/nothing"); }), "there is no file");
  EXPECT_SAYS(message_of<UsageError>([&] { read_file(folder.path()); }), "is a folder");
}

TEST(Bytes, every_cut_of_a_gzip_file_is_refused) {
  const std::string file = gzip("some text that is packed, packed, packed");
  for (size_t n = 2; n < file.size(); ++n) {  // shorter ones are no gzip files
    EXPECT_THROW(unpacked(file.substr(0, n)), FormatError) << n;
  }
}

TEST(Bytes, damage_and_trailing_bytes_are_refused) {
  const std::string file = gzip("some text that is packed, packed, packed");
  std::string damaged = file;
  damaged[damaged.size() - 6] ^= 1;  // the checksum
  EXPECT_SAYS(message_of<FormatError>([&] { unpacked(damaged); }), "damaged");
  EXPECT_SAYS(message_of<FormatError>([&] { unpacked(file + "x"); }), "other bytes follow");
  expect_no_crash_on_damage(file, [](const std::string& bytes) { unpacked(bytes); });
}

TEST(Bytes, a_file_that_unpacks_without_end_stops_at_the_limit) {
  const std::string bomb = gzip(std::string(size_t{20} << 20, '\0'));
  EXPECT_LT(bomb.size(), 40000u);
  EXPECT_SAYS(message_of<FormatError>([&] { unpacked(bomb, 1 << 20); }), "more than 1048576");
}

TEST(Bytes, the_bound_on_what_is_left_holds) {
  const std::string text(size_t{1} << 20, 'a');  // packs about as well as anything can
  const std::string file = gzip(text);
  ByteStream stream(as_bytes(file), "f");
  Bytes piece(1000);
  while (true) {
    EXPECT_GE(stream.most_left(), text.size() - stream.offset());
    if (stream.read(piece) < piece.size()) break;
  }
  EXPECT_EQ(stream.offset(), text.size());
}

}  // namespace
}  // namespace evenkeel::data
