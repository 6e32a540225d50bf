#include "evenkeel/data/cifar.h"

#include <array>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

void check_label(std::byte label, int classes, const std::string& which, const std::string& name, size_t index) {
  if (std::to_integer<int>(label) >= classes) {
    throw FormatError(name + ": " + which + "label " + std::to_string(std::to_integer<int>(label)) + " at index " +
                      std::to_string(index) + " is outside 0.." + std::to_string(classes - 1) +
                      "; is this another CIFAR's file?");
  }
}

}  // namespace

void parse_cifar(std::span<const std::byte> file, const std::string& name, CifarKind kind, Bytes& pixels,
                 std::vector<int32_t>& labels) {
  const bool fine = kind == CifarKind::kCifar100;
  const size_t label_bytes = fine ? 2 : 1;
  const size_t record_bytes = label_bytes + static_cast<size_t>(kCifarPixels);
  ByteStream stream(file, name);
  std::array<std::byte, 2 + kCifarPixels> record;
  if (!is_gzip(file)) {
    pixels.reserve(pixels.size() + file.size());
    labels.reserve(labels.size() + file.size() / record_bytes);
  }
  size_t index = 0;
  for (;; ++index) {
    const size_t got = stream.read({record.data(), record_bytes});
    if (got == 0) break;
    if (got < record_bytes) {
      throw FormatError(name + ": ends at offset " + std::to_string(stream.offset()) + " with " + std::to_string(got) +
                        " bytes of record " + std::to_string(index) + ", expected whole records of " +
                        std::to_string(record_bytes) + " bytes; is the file cut?");
    }
    if (stream.offset() > kUnpackLimit) {
      throw FormatError(name + ": unpacks to more than " + std::to_string(kUnpackLimit) +
                        " bytes, the most that is read of one file");
    }
    if (fine) check_label(record[0], 20, "coarse ", name, index);
    check_label(record[label_bytes - 1], fine ? 100 : 10, "", name, index);
    labels.push_back(std::to_integer<int32_t>(record[label_bytes - 1]));
    pixels.insert(pixels.end(), record.begin() + static_cast<std::ptrdiff_t>(label_bytes),
                  record.begin() + static_cast<std::ptrdiff_t>(record_bytes));
  }
  if (index == 0) {
    throw FormatError(name + ": is empty, expected records of " + std::to_string(record_bytes) + " bytes");
  }
}

}  // namespace evenkeel::data
