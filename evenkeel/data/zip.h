// Zip files, strictly: members stored or packed by deflate, as numpy writes them into .npz.
//
//   const ZipFile zip(bytes, path);
//   for (const ZipMember& member : zip.members()) ... zip.read(member, storage)
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/data/bytes.h"

namespace evenkeel::data {

struct ZipMember {
  std::string name;
  uint64_t size = 0;                  // unpacked
  std::span<const std::byte> packed;  // the member's data as they lie in the file
  bool deflated = false;
  uint32_t crc = 0;
};

// Keeps a view of the bytes.
class ZipFile {
 public:
  // Reads the central directory and compares it with the header in front of every member. Throws FormatError: no or a damaged directory,
  // headers that contradict it, members that overlap or lie outside, names twice, a size that cannot come from so few bytes, encryption,
  // another packing than stored and deflate, several disks, zip64 (sizes of 4 GiB and more).
  ZipFile(std::span<const std::byte> bytes, std::string name);

  const std::vector<ZipMember>& members() const { return members_; }
  // The member's content: a view of the file where it is stored, else of `storage`, which is assigned. Throws FormatError when it is
  // damaged (the checksum says so).
  std::span<const std::byte> read(const ZipMember& member, Bytes& storage) const;
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  std::vector<ZipMember> members_;
};

// Whether the bytes begin as a zip file does: PK 03 04, or PK 05 06 for an empty one.
bool is_zip(std::span<const std::byte> bytes);

}  // namespace evenkeel::data
