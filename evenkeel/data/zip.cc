#include "evenkeel/data/zip.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

constexpr uint32_t kLocalMagic = 0x04034b50, kDirectoryMagic = 0x02014b50, kEndMagic = 0x06054b50;
constexpr size_t kLocalBytes = 30, kDirectoryBytes = 46, kEndBytes = 22;  // without names and extras
constexpr uint16_t kStored = 0, kDeflated = 8;
constexpr uint16_t kEncrypted = 1, kSizesBehind = 8;  // flag bits
constexpr uint32_t kInZip64 = 0xffffffff;             // a field whose value stands in an extra field instead
constexpr uint16_t kZip64Extra = 1;

// Little-endian fields of the file; every read is checked.
class Fields {
 public:
  Fields(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  uint64_t number(uint64_t at, size_t width) const {
    const std::span<const std::byte> field = part(at, width, "a field");
    uint64_t value = 0;
    for (size_t i = 0; i < width; ++i) value |= std::to_integer<uint64_t>(field[i]) << (8 * i);
    return value;
  }
  uint16_t u16(uint64_t at) const { return static_cast<uint16_t>(number(at, 2)); }
  uint32_t u32(uint64_t at) const { return static_cast<uint32_t>(number(at, 4)); }
  std::span<const std::byte> part(uint64_t at, uint64_t length, const char* what) const {
    if (at > bytes_.size() || length > bytes_.size() - at) {
      fail(fmt::format("{} of {} bytes at offset {} lies outside the {} bytes of the file; is it cut?", what, length,
                       at, bytes_.size()));
    }
    return bytes_.subspan(at, length);
  }
  std::string text(uint64_t at, uint64_t length) const {
    const std::span<const std::byte> view = part(at, length, "a name");
    return {reinterpret_cast<const char*>(view.data()), view.size()};
  }
  [[noreturn]] void fail(const std::string& what) const { throw FormatError(name_ + ": bad zip file: " + what); }
  size_t size() const { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
};

// The end record: the last 22 bytes, and a comment.
uint64_t find_end(const Fields& file) {
  constexpr uint64_t kMostComment = 65535;
  if (file.size() < kEndBytes) file.fail("it has no central directory at its end; is it cut?");
  const uint64_t last = file.size() - kEndBytes, first = last - std::min<uint64_t>(last, kMostComment);
  for (uint64_t at = last + 1; at-- > first;) {
    if (file.u32(at) == kEndMagic && file.u16(at + 20) == last - at) return at;
  }
  file.fail("it has no central directory at its end; is it cut?");
}

struct Entry {
  ZipMember member;
  uint64_t begin = 0, end = 0;  // of header and data
};

// The sizes of a local header, from its extra field where the header says so.
bool sizes_agree(const Fields& file, uint64_t at, uint64_t extra, uint64_t extra_length, uint64_t packed,
                 uint64_t size) {
  const uint32_t local_packed = file.u32(at + 18), local_size = file.u32(at + 22);
  if (local_packed != kInZip64 || local_size != kInZip64) return local_packed == packed && local_size == size;
  for (uint64_t i = 0; extra_length >= 4 && i <= extra_length - 4;) {
    const uint64_t length = file.u16(extra + i + 2);
    if (file.u16(extra + i) == kZip64Extra) {
      return length >= 16 && length <= extra_length - i - 4 && file.number(extra + i + 4, 8) == size &&
             file.number(extra + i + 12, 8) == packed;
    }
    i += 4 + length;
  }
  return false;
}

// The entry of the central directory at `at`, whose name has `name_length` bytes.
Entry read_entry(const Fields& file, uint64_t at, uint64_t directory) {
  const uint16_t flags = file.u16(at + 8), method = file.u16(at + 10);
  const uint64_t packed = file.u32(at + 20), size = file.u32(at + 24), local = file.u32(at + 42);
  Entry entry;
  entry.member.name = file.text(at + kDirectoryBytes, file.u16(at + 28));
  entry.member.size = size;
  entry.member.crc = file.u32(at + 16);
  entry.member.deflated = method == kDeflated;
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
  if (std::any_of(entry.member.name.begin(), entry.member.name.end(), is_control)) {
    file.fail(fmt::format("the name of a member at offset {} holds control characters", at));
  }
  const auto fail = [&](const std::string& what) {
    file.fail(fmt::format("member '{}' {}", entry.member.name.substr(0, 100), what));
  };
  if (packed == kInZip64 || size == kInZip64 || local == kInZip64) {
    fail("has sizes in zip64 form, 4 GiB or more, which are not read here; save the arrays as .npy files");
  }
  if ((flags & kEncrypted) != 0) fail("is encrypted; save it without a password");
  if (method != kStored && method != kDeflated) {
    fail(fmt::format("is packed by method {}, expected 0 (stored) or 8 (deflate)", method));
  }
  if (file.u16(at + 34) != 0) fail("lies on another disk");
  if (local > directory || directory - local < kLocalBytes || file.u32(local) != kLocalMagic) {
    fail(fmt::format("has no header at offset {}, where the central directory has it", local));
  }
  const uint64_t name_length = file.u16(local + 26), extra_length = file.u16(local + 28);
  const uint64_t extra = local + kLocalBytes + name_length, data = extra + extra_length;
  if (data > directory || packed > directory - data) {
    fail(fmt::format("promises {} bytes from offset {}, but the central directory begins at {}", packed, data,
                     directory));
  }
  const bool sizes_behind = (file.u16(local + 6) & kSizesBehind) != 0;  // then those in front are zero
  if (file.text(local + kLocalBytes, name_length) != entry.member.name || file.u16(local + 8) != method ||
      (!sizes_behind && !sizes_agree(file, local, extra, extra_length, packed, size))) {
    fail("has a header that contradicts the central directory");
  }
  if (method == kStored ? packed != size : size > most_unpacked(packed)) {
    fail(fmt::format("promises {} bytes, which {} in the file cannot hold", size, packed));
  }
  entry.member.packed = file.part(data, packed, "a member");
  entry.begin = local;
  entry.end = data + packed;
  return entry;
}

}  // namespace

bool is_zip(std::span<const std::byte> bytes) {
  const auto begins = [&](const char* magic) { return bytes.size() >= 4 && std::memcmp(bytes.data(), magic, 4) == 0; };
  return begins("PK\x03\x04") || begins("PK\x05\x06");
}

ZipFile::ZipFile(std::span<const std::byte> bytes, std::string name) : name_(std::move(name)) {
  const Fields file(bytes, name_);
  const uint64_t end = find_end(file);
  const uint64_t count = file.u16(end + 10), length = file.u32(end + 12), directory = file.u32(end + 16);
  if (file.u16(end + 8) == 0xffff || count == 0xffff || length == kInZip64 || directory == kInZip64) {
    file.fail("its directory is in zip64 form, which is not read here; save the arrays as .npy files");
  }
  if (file.u16(end + 4) != 0 || file.u16(end + 6) != 0 || file.u16(end + 8) != count) {
    file.fail("it is a part of several");
  }
  if (directory > end || length != end - directory) {
    file.fail(fmt::format("its central directory is said to have {} bytes from offset {}, but ends at {}", length,
                          directory, end));
  }
  std::vector<Entry> entries;
  uint64_t at = directory;
  for (uint64_t i = 0; i < count; ++i) {
    if (end - at < kDirectoryBytes || file.u32(at) != kDirectoryMagic) {
      file.fail(fmt::format("entry {} of its central directory at offset {} is none", i, at));
    }
    const uint64_t next = at + kDirectoryBytes + file.u16(at + 28) + file.u16(at + 30) + file.u16(at + 32);
    if (next > end) file.fail(fmt::format("entry {} of its central directory goes beyond the end", i));
    entries.push_back(read_entry(file, at, directory));
    at = next;
  }
  if (at != end) file.fail(fmt::format("its central directory has bytes behind its {} entries", count));
  std::set<std::string> names;
  for (const Entry& entry : entries) {
    if (!names.insert(entry.member.name).second) {
      file.fail(fmt::format("the name '{}' is there twice", entry.member.name.substr(0, 100)));
    }
    members_.push_back(entry.member);
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].begin < entries[i - 1].end) {
      file.fail(fmt::format("the members '{}' and '{}' overlap", entries[i - 1].member.name.substr(0, 100),
                            entries[i].member.name.substr(0, 100)));
    }
  }
}

std::span<const std::byte> ZipFile::read(const ZipMember& member, Bytes& storage) const {
  std::span<const std::byte> content = member.packed;
  const std::string name = name_ + ":" + member.name;
  if (member.deflated) {
    storage = inflate_raw(member.packed, member.size, name);
    content = storage;
  }
  if (const uint32_t crc = crc32_of(content); crc != member.crc) {
    throw FormatError(
        fmt::format("{}: the checksum is {:08x}, expected {:08x}: the content is damaged", name, crc, member.crc));
  }
  return content;
}

}  // namespace evenkeel::data
