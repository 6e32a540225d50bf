// The bytes of a file: read whole, unpacked on the way when they are gzip (known by its magic, not by its name).
//
//   const auto file = read_file(path);
//   ByteStream stream(file, path);
//   stream.read(header);  // short only at the end of the file
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace evenkeel::data {

using Bytes = std::vector<std::byte>;

// The whole file as it lies on the disk. Throws UsageError when there is none (or it is a folder), IoError when it
// cannot be read.
Bytes read_file(const std::string& path);

// Whether the bytes begin as a gzip file does: 1f 8b.
bool is_gzip(std::span<const std::byte> bytes);

// Reads bytes in order; gzip members are unpacked and their checksums verified. Keeps a view of `bytes`.
// Every read throws FormatError (with the offset in the packed file) when the gzip data is damaged or cut.
class ByteStream {
 public:
  ByteStream(std::span<const std::byte> bytes, std::string name);
  ~ByteStream();
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  // Assigns up to out.size() bytes of `out` and returns how many: fewer only at the end.
  size_t read(std::span<std::byte> out);
  // The bytes delivered so far: the offset, in the unpacked file, of the next one.
  uint64_t offset() const { return offset_; }
  // A bound on the bytes still to come that the file's word cannot raise: its length, times 1032 when it is gzip
  // (deflate cannot pack better). A promised size above it is a lie, found before anything is allocated.
  uint64_t most_left() const;
  const std::string& name() const { return name_; }

 private:
  struct Inflater;
  std::span<const std::byte> bytes_;
  std::string name_;
  uint64_t offset_ = 0;
  std::unique_ptr<Inflater> inflater_;  // null: the bytes are plain
};

// Reads exactly out.size() bytes. Throws FormatError naming the offset, what was found and `what` was expected when the
// file ends before.
void read_exactly(ByteStream& stream, std::span<std::byte> out, const std::string& what);

// Throws FormatError when there is a byte left. `promised` says in words what should have been the end.
void expect_end(ByteStream& stream, const std::string& promised);

// All bytes, for formats that do not say their size. Throws FormatError above `limit` bytes: a small file that unpacks
// without end stops here.
Bytes unpack(std::span<const std::byte> bytes, const std::string& name, uint64_t limit);

// Unpacks a deflate stream without gzip's wrapper (a member of a zip file) that is to give exactly `size` bytes.
// Throws FormatError when it is damaged or gives another number. The caller has compared `size` with the packed length (most_unpacked).
Bytes inflate_raw(std::span<const std::byte> packed, uint64_t size, const std::string& name);

// The most bytes that so many bytes of a deflate stream can give.
uint64_t most_unpacked(uint64_t packed);

// The checksum of gzip and zip.
uint32_t crc32_of(std::span<const std::byte> bytes);

// The limit for unpack: 4 GiB, some twenty times the largest set this program is for (CIFAR-100, 185 MB).
inline constexpr uint64_t kUnpackLimit = uint64_t{4} << 30;

}  // namespace evenkeel::data
