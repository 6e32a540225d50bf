#include "evenkeel/data/zip.h"

#include "evenkeel/data/files_testing.h"
#include "evenkeel/data/pictures_testing.h"

namespace evenkeel::data {
namespace {

std::vector<std::string> contents(const std::string& file) {
  const ZipFile parsed(as_bytes(file), "f.npz");
  std::vector<std::string> all;
  for (const ZipMember& member : parsed.members()) {
    Bytes storage;
    const auto content = parsed.read(member, storage);
    all.push_back(member.name + "=" + std::string(reinterpret_cast<const char*>(content.data()), content.size()));
  }
  return all;
}

std::string says(const std::string& file) {
  return message_of<FormatError>([&] { contents(file); });
}

const std::vector<std::pair<std::string, std::string>> kMembers = {
    {"a", "some text"}, {"dir/b", ""}, {"c", std::string(9999, 'c')}};

TEST(Zip, members_are_read_stored_and_deflated_and_behind_the_headers_that_numpy_writes) {
  for (const bool deflate : {false, true}) {
    for (const bool zip64 : {false, true}) {
      EXPECT_EQ(contents(zip(kMembers, {deflate, zip64})),
                (std::vector<std::string>{"a=some text", "dir/b=", "c=" + std::string(9999, 'c')}));
    }
  }
  EXPECT_TRUE(contents(zip({})).empty());
  const std::string comment = "PK\5\6 is what an end record begins with";
  std::string commented = zip(kMembers);
  commented[commented.size() - 2] = static_cast<char>(comment.size());
  commented += comment;
  EXPECT_EQ(contents(commented).size(), 3u);
}

TEST(Zip, every_cut_and_every_damaged_byte_is_refused_or_harmless) {
  for (const bool deflate : {false, true}) {
    const std::string file = zip({{"a", "some text, some text"}, {"b", "more"}}, {deflate, true});
    expect_every_cut_refused(file, [](const std::string& f) { contents(f); });
    expect_no_crash_on_damage(file, [](const std::string& f) { contents(f); });
    EXPECT_THROW(contents(file + "x"), FormatError);
    EXPECT_THROW(contents("x" + file), FormatError);
  }
}

TEST(Zip, a_changed_content_is_found_by_its_checksum) {
  std::string file = zip({{"a", "some text"}});
  file[file.find("some")] = 'S';
  EXPECT_SAYS(says(file), "f.npz:a: the checksum is");
}

TEST(Zip, sizes_that_lie_are_refused_before_anything_is_allocated) {
  const auto with = [](const ZipForm& form, size_t local_at, size_t directory_at, uint64_t value) {
    std::string file = zip({{"a", "some text, some text"}}, form);
    const std::string field = little_endian(value, 4);
    file.replace(local_at, 4, field);
    file.replace(file.find("PK\1\2") + directory_at, 4, field);
    return file;
  };
  // 4 GiB - 2 unpacked, from 13 bytes; and as many in the file.
  EXPECT_SAYS(says(with({.deflate = true}, 22, 24, 0xfffffffe)), "cannot hold");
  EXPECT_SAYS(says(with({}, 18, 20, 0xfffffffe)), "promises 4294967294 bytes");
  EXPECT_SAYS(says(with({}, 22, 24, 21)), "cannot hold");  // stored, but of two sizes
  EXPECT_SAYS(says(with({.deflate = true}, 22, 24, 19)), "not as long as");
  EXPECT_SAYS(says(with({.deflate = true}, 22, 24, 21)), "not as long as");
}

TEST(Zip, what_numpy_does_not_write_is_refused_in_one_sentence) {
  const std::string file = zip({{"a", "1"}, {"b", "22"}});
  const size_t directory = file.find("PK\1\2"), end = file.find("PK\5\6");
  const auto changed = [&](size_t at, const std::string& bytes) {
    return std::string(file).replace(at, bytes.size(), bytes);
  };
  EXPECT_SAYS(says(changed(directory + 8, std::string("\1\0", 2))), "encrypted");
  EXPECT_SAYS(says(changed(directory + 10, std::string("\x0e\0", 2))), "method 14");
  EXPECT_SAYS(says(changed(directory + 24, "\xff\xff\xff\xff")), "zip64");
  EXPECT_SAYS(says(changed(end + 8, "\xff\xff\xff\xff")), "zip64");
  EXPECT_SAYS(says(changed(end + 4, std::string("\1\0", 2))), "a part of several");
  EXPECT_SAYS(says(changed(directory + 46, "b")), "contradicts");
  EXPECT_SAYS(says(changed(directory + 42, std::string("\7\0", 2))), "has no header at offset 7");
  EXPECT_SAYS(says(changed(end + 16, std::string("\0\0\0\0", 4))), "central directory");
  EXPECT_SAYS(says(zip({{"a", "1"}, {"a", "2"}})), "'a' is there twice");
  EXPECT_SAYS(says(zip({{"a\n", "1"}})), "control characters");
  EXPECT_SAYS(says("PK\3\4"), "no central directory");
}

// The way in which small files unpack to large ones: b lies inside of a.
TEST(Zip, members_must_not_overlap) {
  const std::string alone = zip({{"b", "1"}});
  std::string file = zip({{"a", alone.substr(0, alone.find("PK\1\2"))}, {"b", "1"}});
  const size_t second = file.find("PK\1\2", file.find("PK\1\2") + 4);
  EXPECT_EQ(contents(file).size(), 2u);
  file.replace(second + 42, 4, little_endian(31, 4));
  EXPECT_SAYS(says(file), "the members 'a' and 'b' overlap");
}

}  // namespace
}  // namespace evenkeel::data
