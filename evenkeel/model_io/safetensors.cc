#include "evenkeel/model_io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <unordered_set>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/model_io/model_kind.h"

namespace evenkeel {
namespace {

static_assert(std::endian::native == std::endian::little, "the data of a file are little-endian");

constexpr uint64_t kMostHeaderBytes = 100'000'000;  // the limit of the format
constexpr size_t kLengthBytes = 8;
constexpr size_t kDataAlignment = 8;
constexpr size_t kMostDimensions = 64;  // as numpy and PyTorch
constexpr const char* kMetadataKey = "__metadata__";

using nlohmann::json;

struct KnownDType {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> dtype;  // none: carried
};
constexpr KnownDType kDTypes[] = {
    {"F32", 32, DType::kF32},     {"F64", 64, DType::kF64},     {"I64", 64, DType::kI64},
    {"I32", 32, DType::kI32},     {"U8", 8, DType::kU8},        {"BOOL", 8, std::nullopt},
    {"I8", 8, std::nullopt},      {"I16", 16, std::nullopt},    {"U16", 16, std::nullopt},
    {"U32", 32, std::nullopt},    {"U64", 64, std::nullopt},    {"F16", 16, std::nullopt},
    {"BF16", 16, std::nullopt},   {"F8_E4M3", 8, std::nullopt}, {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt},      {"C64", 64, std::nullopt},
};

const KnownDType* known_dtype(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const KnownDType& known) { return known.name == name; });
  return found == std::end(kDTypes) ? nullptr : found;
}

// A name from a file, safe to print: cut when long, control characters shown as '?'.
std::string shown_name(std::string_view text) {
  constexpr size_t kMost = 80;
  std::string shown = "\"";
  for (const char c : text.substr(0, kMost)) {
    shown += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return shown + (text.size() > kMost ? "...\"" : "\"");
}

struct Entry {
  std::string name;
  std::string dtype;
  Shape shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct Header {
  std::map<std::string, std::string> metadata;
  std::vector<Entry> entries;
};

// Takes the header event by event, so that duplicate keys are seen and nothing but what the format
// asks for is ever stored. Depth is bounded by construction: the deepest place is a number inside
// the array of an entry. An event that does not fit returns false, which ends the parse, with the
// reason in `problem`.
class HeaderReader final : public nlohmann::json_sax<json> {
 public:
  Header header;
  std::string problem;

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::kBeforeRoot:
        place_ = Place::kRoot;
        return true;
      case Place::kRootValue:
        if (name_ == kMetadataKey) {
          place_ = Place::kMetadata;
        } else {
          place_ = Place::kEntry;
          entry_ = Entry{.name = name_, .dtype = {}, .shape = {}};
          has_dtype_ = has_shape_ = has_offsets_ = false;
        }
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(std::string& name) override {
    switch (place_) {
      case Place::kRoot:
        if (!names_.insert(name).second) return fail("the key " + shown_name(name) + " is given twice");
        name_ = name;
        place_ = Place::kRootValue;
        return true;
      case Place::kMetadata:
        if (header.metadata.contains(name)) {
          return fail("the key " + shown_name(name) + " is given twice in __metadata__");
        }
        name_ = name;
        place_ = Place::kMetadataValue;
        return true;
      case Place::kEntry:
        return entry_key(name);
      default:
        return unexpected("a key");
    }
  }

  bool end_object() override {
    switch (place_) {
      case Place::kRoot:
        place_ = Place::kAfterRoot;
        return true;
      case Place::kMetadata:
        place_ = Place::kRoot;
        return true;
      case Place::kEntry:
        if (!has_dtype_ || !has_shape_ || !has_offsets_) {
          return fail(tensor() + " lacks " + (!has_dtype_ ? "dtype" : !has_shape_ ? "shape" : "data_offsets"));
        }
        header.entries.push_back(std::move(entry_));
        place_ = Place::kRoot;
        return true;
      default:
        return unexpected("the end of an object");
    }
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kShapeValue) {
      place_ = Place::kShape;
    } else if (place_ == Place::kOffsetsValue) {
      place_ = Place::kOffsets;
      offsets_ = 0;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && offsets_ != 2) {
      return fail(tensor() + " has " + std::to_string(offsets_) + " data_offsets; expected a begin and an end");
    }
    place_ = Place::kEntry;
    return true;
  }

  bool number_unsigned(json::number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(INT64_MAX)) return fail(tensor() + " has an extent too large");
      if (entry_.shape.size() == kMostDimensions) {
        return fail(tensor() + " has more than " + std::to_string(kMostDimensions) + " dimensions");
      }
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (offsets_ == 0) entry_.begin = value;
      if (offsets_ == 1) entry_.end = value;
      if (++offsets_ > 2) return fail(tensor() + " has more than two data_offsets");
      return true;
    }
    return unexpected("a number");
  }

  bool string(std::string& text) override {
    if (place_ == Place::kMetadataValue) {
      header.metadata.emplace(name_, text);
      place_ = Place::kMetadata;
      return true;
    }
    if (place_ == Place::kDTypeValue) {
      entry_.dtype = text;
      place_ = Place::kEntry;
      return true;
    }
    return unexpected("a string");
  }

  bool number_integer(json::number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(json::number_float_t, const std::string&) override {
    return unexpected("a number that is no integer");
  }
  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool binary(json::binary_t&) override { return unexpected("binary data"); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    // position counts from 1, after the length.
    return fail("the JSON is not valid at offset " + std::to_string(kLengthBytes + (position > 0 ? position - 1 : 0)));
  }

 private:
  enum class Place {
    kBeforeRoot,
    kRoot,
    kRootValue,
    kMetadata,
    kMetadataValue,
    kEntry,
    kDTypeValue,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kAfterRoot,
  };

  bool entry_key(const std::string& name) {
    bool* given = nullptr;
    if (name == "dtype") {
      given = &has_dtype_;
      place_ = Place::kDTypeValue;
    } else if (name == "shape") {
      given = &has_shape_;
      place_ = Place::kShapeValue;
    } else if (name == "data_offsets") {
      given = &has_offsets_;
      place_ = Place::kOffsetsValue;
    } else {
      return fail(tensor() + " has the key " + shown_name(name) + "; expected dtype, shape and data_offsets");
    }
    if (*given) return fail(tensor() + " has " + name + " twice");
    *given = true;
    return true;
  }

  std::string tensor() const { return "tensor " + shown_name(entry_.name); }

  std::string expected() const {
    switch (place_) {
      case Place::kRootValue:
        return "an object for " + shown_name(name_);
      case Place::kMetadataValue:
        return "a string for the metadata " + shown_name(name_);
      case Place::kDTypeValue:
        return "a string for dtype of " + tensor();
      case Place::kShapeValue:
        return "an array for shape of " + tensor();
      case Place::kShape:
        return "extents (integers from 0) in shape of " + tensor();
      case Place::kOffsetsValue:
        return "an array for data_offsets of " + tensor();
      case Place::kOffsets:
        return "two integers from 0 in data_offsets of " + tensor();
      default:
        return "an object of tensors";
    }
  }

  bool unexpected(const std::string& found) { return fail("found " + found + ", expected " + expected()); }
  bool fail(std::string why) {
    if (problem.empty()) problem = std::move(why);
    return false;
  }

  Place place_ = Place::kBeforeRoot;
  std::unordered_set<std::string> names_;
  std::string name_;
  Entry entry_;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  int offsets_ = 0;
};

[[noreturn]] void refuse(const std::string& file, const std::string& why) {
  throw FormatError(file + " is not a valid safetensors file: " + why +
                    "; it may be cut off or damaged: copy or convert it again");
}

// Files of other kinds that people try: say how to come from there to here.
void refuse_other_formats(std::span<const std::byte> bytes, const std::string& file) {
  const ModelKind kind = kind_of_bytes(bytes.first(std::min(bytes.size(), kKindBytes)), bytes.size());
  if (kind == ModelKind::kSafetensors || kind == ModelKind::kUnknown) return;
  throw FormatError(not_read(file, kind, "a safetensors file"));
}

uint64_t header_length(std::span<const std::byte> bytes, const std::string& file) {
  const std::string size = std::to_string(bytes.size()) + " bytes";
  if (bytes.size() < kLengthBytes) {
    refuse(file, "the file has " + size + ", expected at least 8 with the length of the header");
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMostHeaderBytes) {
    refuse(file, "at offset 0 the header's length is " + std::to_string(length) + ", expected at most " +
                     std::to_string(kMostHeaderBytes));
  }
  if (length > bytes.size() - kLengthBytes) {
    refuse(file, "at offset 0 the header's length is " + std::to_string(length) + ", but the file has " + size);
  }
  if (length == 0 || bytes[kLengthBytes] != std::byte{'{'}) {
    refuse(file, "the header does not start with '{' at offset 8");
  }
  return length;
}

Header parse_header(std::span<const std::byte> header_bytes, const std::string& file) {
  HeaderReader reader;
  const char* text = reinterpret_cast<const char*>(header_bytes.data());
  if (!json::sax_parse(text, text + header_bytes.size(), &reader)) refuse(file, reader.problem);
  return std::move(reader.header);
}

// Whether so many elements take so many bytes. Of a type of tomorrow only the tiling can be checked.
bool fits(const std::string& dtype, int64_t count, uint64_t bytes) {
  const KnownDType* known = known_dtype(dtype);
  uint64_t bits = 0;
  if (known == nullptr) return true;
  return !__builtin_mul_overflow(static_cast<uint64_t>(count), known->bits, &bits) && bits % 8 == 0 &&
         bits / 8 == bytes;
}

// The range of one entry agrees with its shape and element type, and lies in the data.
void check_range(const Entry& entry, uint64_t data_bytes, const std::string& file) {
  const std::string tensor = "tensor " + shown_name(entry.name);
  if (entry.begin > entry.end || entry.end > data_bytes) {
    refuse(file, tensor + " has data_offsets [" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) +
                     "), but the data have " + std::to_string(data_bytes) + " bytes");
  }
  int64_t count = 1;
  for (const int64_t extent : entry.shape) {
    if (__builtin_mul_overflow(count, extent, &count)) {
      refuse(file, tensor + " of shape " + to_string(entry.shape) + " has too many elements");
    }
  }
  if (!fits(entry.dtype, count, entry.end - entry.begin)) {
    refuse(file, tensor + " of shape " + to_string(entry.shape) + " and dtype " + entry.dtype + " has " +
                     std::to_string(entry.end - entry.begin) + " bytes, which do not fit its shape");
  }
}

// Every byte of the data belongs to exactly one entry.
void check_tiling(const std::vector<Entry>& entries, uint64_t data_bytes, const std::string& file) {
  std::vector<size_t> order(entries.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(entries[a].begin, entries[a].end) < std::pair(entries[b].begin, entries[b].end);
  });
  uint64_t covered = 0;
  for (const size_t i : order) {
    const Entry& entry = entries[i];
    if (entry.begin != covered) {
      refuse(file, "tensor " + shown_name(entry.name) + " begins at data offset " + std::to_string(entry.begin) +
                       ", expected " + std::to_string(covered) +
                       (entry.begin > covered ? " (a hole)" : " (an overlap)"));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    refuse(file, "the tensors cover " + std::to_string(covered) + " bytes of data, but there are " +
                     std::to_string(data_bytes));
  }
}

// What is written of a tensor, of either kind.
struct Piece {
  const std::string& name;
  std::string dtype;
  const Shape& shape;
  std::span<const std::byte> data;
  uint64_t alignment = 1;  // of its elements
};

std::vector<Piece> pieces_of(const TensorFile& file) {
  std::vector<Piece> pieces;
  pieces.reserve(file.tensors.size() + file.carried.size());
  for (const auto& [name, tensor] : file.tensors) {
    pieces.push_back(
        {name, name_of(tensor.dtype()), tensor.shape(), {tensor.raw(), tensor.bytes()}, size_bytes(tensor.dtype())});
  }
  for (const CarriedTensor& tensor : file.carried) {
    if (!fits(tensor.dtype, element_count(tensor.shape), tensor.data.size())) {
      throw UsageError("tensor " + shown_name(tensor.name) + " of shape " + to_string(tensor.shape) + " and dtype " +
                       tensor.dtype + " has " + std::to_string(tensor.data.size()) +
                       " bytes, which do not fit its shape");
    }
    const KnownDType* known = known_dtype(tensor.dtype);
    const uint64_t alignment = known == nullptr ? 1 : std::max<uint64_t>(1, known->bits / 8);
    pieces.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.data, alignment});
  }
  return pieces;
}

// The header's text, padded with spaces to the alignment of the data, and the order in which the
// tensors' data follow.
struct Layout {
  std::vector<Piece> pieces;
  std::string head;  // length and header
  std::vector<size_t> order;
};

void check_name(const std::string& name, std::unordered_set<std::string>& names) {
  if (name == kMetadataKey) throw UsageError("a tensor cannot be named __metadata__; rename it");
  if (!names.insert(name).second) {
    throw UsageError("two tensors are named " + shown_name(name) + "; rename one");
  }
}

std::string header_text(const std::map<std::string, std::string>& metadata, const std::vector<Piece>& pieces,
                        const std::vector<uint64_t>& begins) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  // One text per entry: an ordered_json with thousands of keys looks each one up from the front.
  std::string text = header.dump();
  text.pop_back();
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    const nlohmann::ordered_json entry = {
        {"dtype", piece.dtype}, {"shape", piece.shape}, {"data_offsets", {begins[i], begins[i] + piece.data.size()}}};
    if (text.size() > 1) text += ',';
    text += nlohmann::ordered_json(piece.name).dump() + ':' + entry.dump();
  }
  return text + '}';
}

Layout lay_out(const TensorFile& file) {
  Layout layout{.pieces = pieces_of(file), .head = {}, .order = {}};
  const std::vector<Piece>& pieces = layout.pieces;
  std::unordered_set<std::string> names;
  for (const Piece& piece : pieces) check_name(piece.name, names);

  layout.order.resize(pieces.size());
  std::iota(layout.order.begin(), layout.order.end(), size_t{0});
  std::stable_sort(layout.order.begin(), layout.order.end(),
                   [&](size_t a, size_t b) { return pieces[a].alignment > pieces[b].alignment; });
  std::vector<uint64_t> begins(pieces.size());
  uint64_t end = 0;
  for (const size_t i : layout.order) {
    begins[i] = end;
    end += pieces[i].data.size();
  }

  std::string header;
  try {
    header = header_text(file.metadata, pieces, begins);
  } catch (const json::exception&) {
    throw UsageError("a tensor's name or a metadata text is not UTF-8; rename it");
  }
  header.resize((header.size() + kDataAlignment - 1) / kDataAlignment * kDataAlignment, ' ');
  if (header.size() > kMostHeaderBytes) {
    throw UsageError("names and metadata take " + std::to_string(header.size()) +
                     " bytes; a safetensors header has at most " + std::to_string(kMostHeaderBytes));
  }
  const uint64_t length = header.size();
  layout.head.assign(reinterpret_cast<const char*>(&length), kLengthBytes);
  layout.head += header;
  return layout;
}

std::vector<std::span<const std::byte>> bytes_of(const Layout& layout) {
  std::vector<std::span<const std::byte>> bytes;
  bytes.push_back(std::as_bytes(std::span(layout.head)));
  for (const size_t i : layout.order) bytes.push_back(layout.pieces[i].data);
  return bytes;
}

}  // namespace

const Tensor* TensorFile::find(std::string_view name) const {
  for (const auto& [candidate, tensor] : tensors) {
    if (candidate == name) return &tensor;
  }
  return nullptr;
}

Tensor* TensorFile::find(std::string_view name) { return const_cast<Tensor*>(std::as_const(*this).find(name)); }

TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name_for_messages) {
  refuse_other_formats(bytes, name_for_messages);
  const uint64_t length = header_length(bytes, name_for_messages);
  Header header = parse_header(bytes.subspan(kLengthBytes, length), name_for_messages);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + length);
  for (const Entry& entry : header.entries) check_range(entry, data.size(), name_for_messages);
  check_tiling(header.entries, data.size(), name_for_messages);

  TensorFile file;
  file.metadata = std::move(header.metadata);
  for (Entry& entry : header.entries) {
    const KnownDType* known = known_dtype(entry.dtype);
    if (known == nullptr || !known->dtype.has_value()) {
      const std::span<const std::byte> own = data.subspan(entry.begin, entry.end - entry.begin);
      file.carried.push_back(
          {std::move(entry.name), std::move(entry.dtype), std::move(entry.shape), {own.begin(), own.end()}});
      continue;
    }
    Tensor tensor(*known->dtype, std::move(entry.shape));
    EK_ASSERT(tensor.bytes() == entry.end - entry.begin);
    if (tensor.bytes() > 0) std::memcpy(tensor.raw(), data.data() + entry.begin, tensor.bytes());
    file.tensors.emplace_back(std::move(entry.name), std::move(tensor));
  }
  return file;
}

TensorFile read_safetensors(const std::string& path) { return parse_safetensors(read_file(path), path); }

std::vector<std::byte> serialize_safetensors(const TensorFile& file) {
  const Layout layout = lay_out(file);
  std::vector<std::byte> bytes;
  for (const auto& piece : bytes_of(layout)) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
  }
  return bytes;
}

void write_safetensors(const std::string& path, const TensorFile& file) {
  const Layout layout = lay_out(file);
  write_file_atomically(path, bytes_of(layout));
}

}  // namespace evenkeel
