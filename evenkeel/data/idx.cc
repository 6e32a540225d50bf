#include "evenkeel/data/idx.h"

#include <array>
#include <bit>
#include <cstdio>

#include "evenkeel/core/error.h"
#include "evenkeel/data/bytes.h"
#include "evenkeel/data/fit.h"

namespace evenkeel::data {
namespace {

enum class IdxType : uint8_t { kU8 = 0x08, kI32 = 0x0c, kF32 = 0x0d, kF64 = 0x0e };

struct IdxHeader {
  IdxType type = IdxType::kU8;
  Shape shape;
  int64_t value_bytes = 0;  // of all values
};

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) {
    char digits[4];
    std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned>(b));
    text += (text.empty() ? "" : " ") + std::string(digits);
  }
  return text;
}

uint32_t big_endian(const std::byte* p) {
  return std::to_integer<uint32_t>(p[0]) << 24 | std::to_integer<uint32_t>(p[1]) << 16 |
         std::to_integer<uint32_t>(p[2]) << 8 | std::to_integer<uint32_t>(p[3]);
}

uint64_t big_endian_64(const std::byte* p) { return uint64_t{big_endian(p)} << 32 | big_endian(p + 4); }

int64_t size_of(IdxType type) { return type == IdxType::kU8 ? 1 : type == IdxType::kF64 ? 8 : 4; }

// Reads the header and checks that the file can hold what it promises.
IdxHeader read_header(ByteStream& stream, const std::string& what) {
  std::array<std::byte, 4> magic{};
  read_exactly(stream, magic, "IDX magic");
  IdxHeader header;
  const auto type = std::to_integer<uint8_t>(magic[2]);
  const bool known = type == 0x08 || type == 0x0c || type == 0x0d || type == 0x0e;
  if (magic[0] != std::byte{0} || magic[1] != std::byte{0} || !known) {
    throw FormatError(stream.name() + ": found the magic " + hex(magic) + " at offset 0, expected an IDX file of " +
                      what + " (00 00, a type of 08, 0c, 0d or 0e, a rank)");
  }
  header.type = static_cast<IdxType>(type);
  const auto rank = std::to_integer<int>(magic[3]);
  if (rank < 1 || rank > 4) {
    throw FormatError(stream.name() + ": found rank " + std::to_string(rank) + " at offset 3, expected 1 to 4");
  }
  header.value_bytes = size_of(header.type);
  for (int axis = 0; axis < rank; ++axis) {
    std::array<std::byte, 4> extent{};
    read_exactly(stream, extent, "IDX extents");
    header.shape.push_back(big_endian(extent.data()));
    if (__builtin_mul_overflow(header.value_bytes, header.shape.back(), &header.value_bytes)) {
      throw FormatError(stream.name() + ": the extents " + to_string(header.shape) + " at offset 4 overflow");
    }
  }
  if (static_cast<uint64_t>(header.value_bytes) > stream.most_left()) {
    throw FormatError(stream.name() + ": the header promises " + to_string(header.shape) + ", " +
                      std::to_string(header.value_bytes) + " bytes from offset " + std::to_string(stream.offset()) +
                      ", found at most " + std::to_string(stream.most_left()) + "; is the file cut?");
  }
  return header;
}

// Reads `count` values of the header's type into floats, a piece at a time.
void read_floats(ByteStream& stream, const IdxHeader& header, std::span<float> out) {
  const auto size = static_cast<size_t>(size_of(header.type));
  std::array<std::byte, 8192> piece;
  for (size_t i = 0; i < out.size();) {
    const size_t n = std::min(out.size() - i, piece.size() / size);
    read_exactly(stream, {piece.data(), n * size}, "values");
    for (size_t j = 0; j < n; ++j, ++i) {
      const std::byte* p = piece.data() + j * size;
      switch (header.type) {
        case IdxType::kU8:
          out[i] = std::to_integer<uint8_t>(*p);
          break;
        case IdxType::kI32:
          out[i] = static_cast<float>(static_cast<int32_t>(big_endian(p)));
          break;
        case IdxType::kF32:
          out[i] = std::bit_cast<float>(big_endian(p));
          break;
        case IdxType::kF64:
          out[i] = static_cast<float>(std::bit_cast<double>(big_endian_64(p)));
          break;
      }
    }
  }
}

}  // namespace

Tensor parse_idx_examples(std::span<const std::byte> file, const std::string& name) {
  ByteStream stream(file, name);
  const IdxHeader header = read_header(stream, "images");
  if (header.shape.size() < 2) {
    throw FormatError(name +
                      ": found rank 1 at offset 3, which holds labels; expected rank 3, "
                      "images");
  }
  for (size_t axis = 1; axis < header.shape.size(); ++axis) {
    if (header.shape[axis] == 0) {
      throw FormatError(name + ": the extents " + to_string(header.shape) +
                        " at offset 4 hold a 0, expected at least one pixel");
    }
  }
  require_channels_first(name, header.shape);
  Shape shape = header.shape;
  if (shape.size() == 3) shape.insert(shape.begin() + 1, 1);
  const bool as_bytes = header.type == IdxType::kU8 && shape.size() == 4;
  Tensor values(as_bytes ? DType::kU8 : DType::kF32, shape);
  if (as_bytes) {
    read_exactly(stream, {values.raw(), values.bytes()}, "pixels");
  } else {
    read_floats(stream, header, values.values<float>());
  }
  expect_end(stream, "the " + to_string(header.shape) + " values that the header promises");
  return values;
}

std::vector<int32_t> parse_idx_labels(std::span<const std::byte> file, const std::string& name, int64_t classes) {
  ByteStream stream(file, name);
  const IdxHeader header = read_header(stream, "labels");
  if (header.shape.size() != 1) {
    throw FormatError(name + ": found rank " + std::to_string(header.shape.size()) +
                      " at offset 3, expected rank 1, labels");
  }
  if (header.type != IdxType::kU8 && header.type != IdxType::kI32) {
    throw FormatError(name + ": found floats (the type at offset 2), expected labels of type 08 or 0c");
  }
  const auto size = static_cast<size_t>(size_of(header.type));
  std::vector<std::byte> raw(static_cast<size_t>(header.value_bytes));
  read_exactly(stream, raw, "labels");
  expect_end(stream, "the " + std::to_string(header.shape[0]) + " labels that the header promises");

  std::vector<int32_t> labels(static_cast<size_t>(header.shape[0]));
  for (size_t i = 0; i < labels.size(); ++i) {
    const std::byte* p = raw.data() + i * size;
    labels[i] = size == 1 ? std::to_integer<int32_t>(*p) : static_cast<int32_t>(big_endian(p));
    if (labels[i] < 0 || labels[i] >= classes) {
      throw FormatError(name + ": label " + std::to_string(labels[i]) + " at index " + std::to_string(i) +
                        " is outside 0.." + std::to_string(classes - 1));
    }
  }
  return labels;
}

}  // namespace evenkeel::data
