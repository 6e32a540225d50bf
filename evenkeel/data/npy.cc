#include "evenkeel/data/npy.h"

#include <fmt/format.h>

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

static_assert(std::endian::native == std::endian::little, "NPY values are copied as they lie");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kMostHeaderBytes = 65536;  // numpy writes some 118; longer ones are refused unread
constexpr size_t kMostExtents = 8;

// Reader of the header's dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (60000, 784), }
class HeaderReader {
 public:
  HeaderReader(std::string_view text, size_t offset, const std::string& name)
      : text_(text), offset_(offset), name_(name) {}

  void read() {
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr") {
        if (peek() != '\'' && peek() != '"') {
          fail("found a structured type, expected a plain one such as '<f4'");
        }
        descr = quoted();
      } else if (key == "fortran_order") {
        fortran_order = boolean();
      } else if (key == "shape") {
        read_shape();
      } else {
        fail("found the unknown key '" + std::string(key.substr(0, 20)) + "'");
      }
      if (!accept(',') && peek() != '}') fail("expected , or }");
    }
    if (peek() != '\0') fail("expected nothing after }");
    if (!descr || !fortran_order || !shape) {
      fail("expected the keys descr, fortran_order and shape");
    }
  }

  std::optional<std::string_view> descr;
  std::optional<bool> fortran_order;
  std::optional<Shape> shape;

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError(name_ + ": bad NPY header near offset " + std::to_string(offset_ + at_) + ": " + what);
  }
  char peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(std::string("expected ") + c);
  }
  std::string_view quoted() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail("expected a quoted name");
    const size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) fail("expected a closing quote");
    const std::string_view word = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return word;
  }
  bool boolean() {
    peek();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return value;
      }
    }
    fail("expected True or False");
  }
  void read_shape() {
    expect('(');
    shape.emplace();
    while (!accept(')')) {
      int64_t extent = -1;
      peek();
      const char* begin = text_.data() + at_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), extent);
      if (error != std::errc{} || extent < 0) fail("expected an extent, a whole number >= 0");
      at_ += static_cast<size_t>(end - begin);
      shape->push_back(extent);
      if (shape->size() > kMostExtents) fail("expected at most 8 extents");
      if (!accept(',') && peek() != ')') fail("expected , or )");
    }
  }

  std::string_view text_;
  size_t offset_;
  const std::string& name_;
  size_t at_ = 0;
};

NpyType type_of(std::string_view descr, const std::string& name) {
  if (descr == "|u1" || descr == "<u1") return NpyType::kU8;
  if (descr == "<i4") return NpyType::kI32;
  if (descr == "<i8") return NpyType::kI64;
  if (descr == "<f4") return NpyType::kF32;
  if (descr == "<f8") return NpyType::kF64;
  if (descr.size() > 1 && (descr[1] == 'U' || descr[1] == 'S')) {
    throw FormatError(name + ": found text (the type '" + std::string(descr.substr(0, 16)) +
                      "'), expected numbers; labels must be whole numbers from 0, which names, y = np.unique(y, "
                      "return_inverse=True) makes of words");
  }
  std::string what = "the type '" + std::string(descr.substr(0, 16)) + "'";
  if (descr.find('O') != std::string_view::npos) what = "an array of Python objects";
  throw FormatError(name + ": found " + what +
                    ", expected u1, i4, i8, f4 or f8, little-endian; convert it with "
                    "numpy's astype before saving");
}

size_t size_of(NpyType type) {
  switch (type) {
    case NpyType::kU8:
      return 1;
    case NpyType::kI32:
    case NpyType::kF32:
      return 4;
    case NpyType::kI64:
    case NpyType::kF64:
      return 8;
  }
  return 0;
}

template <class T>
T value_at(const NpyArray& array, int64_t index) {
  T value;
  std::memcpy(&value, array.values.data() + static_cast<size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

// Checks magic and version; returns where the dictionary begins and its length.
std::pair<size_t, size_t> header_extent(std::span<const std::byte> file, const std::string& name) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (text.substr(0, kMagic.size()) != kMagic) {
    throw FormatError(name +
                      ": expected the magic 93 4e 55 4d 50 59 (\\x93NUMPY) at offset 0, "
                      "found other bytes; is it a file of numpy.save?");
  }
  const auto cut = [&] {
    return FormatError(name + ": ends at offset " + std::to_string(file.size()) +
                       " inside the NPY header; is the file cut?");
  };
  if (file.size() < 10) throw cut();
  const auto byte = [&](size_t i) { return std::to_integer<size_t>(file[i]); };
  const size_t major = byte(6);
  if (major < 1 || major > 3) {
    throw FormatError(name + ": found NPY version " + std::to_string(major) + " at offset 6, expected 1, 2 or 3");
  }
  if (major > 1 && file.size() < 12) throw cut();
  const size_t begin = major == 1 ? 10 : 12;
  const size_t length = byte(8) | byte(9) << 8 | (major == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (length > file.size() - begin) throw cut();
  if (length > kMostHeaderBytes) {
    throw FormatError(name + ": found an NPY header of " + std::to_string(length) +
                      " bytes at offset 8, expected at most " + std::to_string(kMostHeaderBytes));
  }
  return {begin, length};
}

}  // namespace

double npy_value(const NpyArray& array, int64_t index) {
  switch (array.type) {
    case NpyType::kU8:
      return value_at<uint8_t>(array, index);
    case NpyType::kI32:
      return value_at<int32_t>(array, index);
    case NpyType::kI64:
      return static_cast<double>(value_at<int64_t>(array, index));
    case NpyType::kF32:
      return static_cast<double>(value_at<float>(array, index));
    case NpyType::kF64:
      return value_at<double>(array, index);
  }
  return 0;
}

NpyArray parse_npy(std::span<const std::byte> file, const std::string& name) {
  const auto [begin, length] = header_extent(file, name);
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  HeaderReader header(text.substr(begin, length), begin, name);
  header.read();

  NpyArray array;
  array.type = type_of(*header.descr, name);
  if (*header.fortran_order && header.shape->size() > 1) {
    throw FormatError(name +
                      ": the array is in Fortran order, expected C order; save "
                      "numpy.ascontiguousarray(x) instead");
  }
  array.shape = *header.shape;
  array.values = file.subspan(begin + length);
  array.count = 1;
  int64_t bytes = static_cast<int64_t>(size_of(array.type));
  for (const int64_t extent : array.shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes) || __builtin_mul_overflow(array.count, extent, &array.count)) {
      throw FormatError(name + ": the shape " + to_string(array.shape) + " overflows");
    }
  }
  if (static_cast<uint64_t>(bytes) != array.values.size()) {
    throw FormatError(name + ": the header promises " + to_string(array.shape) + ", " + std::to_string(bytes) +
                      " bytes from offset " + std::to_string(begin + length) + ", found " +
                      std::to_string(array.values.size()) + "; is the file cut?");
  }
  return array;
}

void npy_floats(const NpyArray& array, int64_t first, const std::string& name, std::span<float> out) {
  EK_ASSERT(first >= 0 && first + static_cast<int64_t>(out.size()) <= array.count);
  for (size_t i = 0; i < out.size(); ++i) {
    const double value = npy_value(array, first + static_cast<int64_t>(i));
    // Compared in double: a cast of what no float holds is undefined.
    if (!(std::abs(value) <= static_cast<double>(std::numeric_limits<float>::max()))) {
      throw FormatError(name + ": value " + fmt::format("{}", value) + " at index " +
                        std::to_string(first + static_cast<int64_t>(i)) +
                        " (counted over the whole array) is not a finite 32-bit float");
    }
    out[i] = static_cast<float>(value);
  }
}

bool holds_pixels(const NpyArray& array) {
  if (array.type == NpyType::kF32 || array.type == NpyType::kF64) return false;
  if (array.type == NpyType::kU8) return true;
  for (int64_t i = 0; i < array.count; ++i) {
    const double value = npy_value(array, i);
    if (!(value >= 0 && value <= 255)) return false;
  }
  return true;
}

void npy_pixels(const NpyArray& array, std::span<uint8_t> out) {
  EK_ASSERT(static_cast<int64_t>(out.size()) == array.count);
  if (out.empty()) return;
  if (array.type == NpyType::kU8) {
    std::memcpy(out.data(), array.values.data(), out.size());
    return;
  }
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(npy_value(array, static_cast<int64_t>(i)));
}

std::vector<int32_t> npy_labels(const NpyArray& array, const std::string& name, int64_t classes) {
  const bool flat = array.shape.size() == 1 || (array.shape.size() == 2 && array.shape[1] == 1);
  if (!flat) {
    throw FormatError(name + ": found the shape " + to_string(array.shape) + ", expected labels of shape [n]");
  }
  if (array.type == NpyType::kF32 || array.type == NpyType::kF64) {
    throw FormatError(name +
                      ": found floats, expected whole numbers as labels; save "
                      "y.astype('int64') instead");
  }
  std::vector<int32_t> labels(static_cast<size_t>(array.count));
  for (int64_t i = 0; i < array.count; ++i) {
    const int64_t label = array.type == NpyType::kU8    ? value_at<uint8_t>(array, i)
                          : array.type == NpyType::kI32 ? value_at<int32_t>(array, i)
                                                        : value_at<int64_t>(array, i);
    if (label < 0 || label >= classes) {
      throw FormatError(name + ": label " + std::to_string(label) + " at index " + std::to_string(i) +
                        " is outside 0.." + std::to_string(classes - 1));
    }
    labels[static_cast<size_t>(i)] = static_cast<int32_t>(label);
  }
  return labels;
}

}  // namespace evenkeel::data
