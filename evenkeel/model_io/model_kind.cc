#include "evenkeel/model_io/model_kind.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"

namespace evenkeel {
namespace {

using namespace std::string_view_literals;
namespace fs = std::filesystem;

bool begins_with(std::string_view bytes, std::string_view magic) { return bytes.substr(0, magic.size()) == magic; }

// Eight bytes with the length of the header, then '{'. No other kind has zeros in the upper half of its first eight bytes and a brace
// behind them; whether the length is true is the reader's business.
bool is_safetensors(std::string_view bytes) {
  uint64_t length = 0;
  if (bytes.size() <= sizeof length || bytes[sizeof length] != '{') return false;
  std::memcpy(&length, bytes.data(), sizeof length);
  return length >> 32 == 0;
}

bool is_hdf5(std::string_view bytes) {
  constexpr std::string_view kMagic = "\x89HDF\r\n\x1a\n"sv;
  for (size_t at = 0; at < bytes.size();
       at = at == 0 ? 512 : 2 * at) {  // a block of the user's own may stand before it
    if (begins_with(bytes.substr(at), kMagic)) return true;
  }
  return false;
}

bool is_old_pickle(std::string_view bytes) {
  return bytes.size() > 1 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5;
}

// The name of the first file in a zip archive.
std::string_view first_name_in_zip(std::string_view bytes) {
  constexpr size_t kNameLengthAt = 26, kNameAt = 30;
  if (bytes.size() < kNameAt) return {};
  uint16_t length = 0;
  std::memcpy(&length, bytes.data() + kNameLengthAt, sizeof length);
  return bytes.substr(kNameAt, length);
}

// What people bring as a model is PyTorch's, whose first file is NAME/data.pkl or, of old or of TorchScript, something else.
ModelKind kind_of_zip(std::string_view bytes) {
  const std::string_view name = first_name_in_zip(bytes);
  const bool keras = name == "metadata.json" || name == "config.json" || name.ends_with(".weights.h5");
  return keras || name.ends_with(".npy") ? ModelKind::kZip : ModelKind::kPickle;
}

std::optional<uint64_t> take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  return {};
}

// Fields of ModelProto: ir_version 1, producer_name 2, producer_version 3, domain 4, model_version 5, doc_string 6, graph 7, opset_import 8,
// metadata_props 14, training_info 20, functions 25. All are texts or messages but the two versions.
bool is_field_of_a_model(uint64_t number, uint64_t wire) {
  constexpr uint64_t kVarint = 0, kLengthDelimited = 2;
  if (number == 1 || number == 5) return wire == kVarint;
  return wire == kLengthDelimited && (number <= 8 || number == 14 || number == 20 || number == 25) && number >= 2;
}

// A protobuf message without a magic: walked field by field as far as it is there. An ONNX model if all are fields of one, and there is a
// version with something behind it, a graph, or an operator set.
bool is_onnx(std::string_view bytes) {
  int fields = 0;
  bool version = false, body = false;
  while (!bytes.empty()) {
    const auto tag = take_varint(bytes);
    if (!tag || !is_field_of_a_model(*tag >> 3, *tag & 7)) return false;
    const auto value = take_varint(bytes);
    if (!value) break;
    ++fields;
    const uint64_t number = *tag >> 3;
    version = version || number == 1;
    body = body || number == 7 || number == 8;
    if (number == 1 && (*value == 0 || *value > 1000)) return false;
    if ((*tag & 7) == 0) continue;
    if (*value > bytes.size()) break;  // goes on behind what is here
    bytes.remove_prefix(*value);
  }
  return body || (version && fields > 1);
}

// The name for a line of a shell or of Python: only what needs no quotes of its own.
std::string quotable(const std::string& path, const char* otherwise) {
  const bool plain = !path.empty() && std::all_of(path.begin(), path.end(), [](unsigned char c) {
    return std::isalnum(c) || (c != 0 && std::strchr("-_./+@:, ~", c) != nullptr);
  });
  return plain ? path : otherwise;
}

std::string how_to_convert(const std::string& path, ModelKind kind) {
  const std::string out = quotable(fs::path(path).stem().string(), "model") + ".safetensors";
  switch (kind) {
    case ModelKind::kPickle:
      return "; a pickle can run any code when it is opened and is never read here; convert it once, where PyTorch "
             "and safetensors are: python3 -c \"import torch, safetensors.torch as s; d = torch.load('" +
             quotable(path, "model.pt") +
             "', map_location='cpu', weights_only=True); d = d.get('state_dict', d); s.save_file({k: "
             "v.clone().contiguous() "
             "for k, v in d.items()}, '" +
             out + "')\"";
    case ModelKind::kHdf5:
      return "; `evenkeel inspect` reads its norms, and `evenkeel convert` makes a state dict of them; for the rest "
             "write an "
             "ONNX file of it with tf2onnx, or its arrays once with h5py and safetensors.numpy.save_file";
    case ModelKind::kZip:
      return "; a .keras archive can be saved again as .h5 (model.save('model.h5')), whose norms `evenkeel inspect` "
             "reads";
    default:
      return "";
  }
}

}  // namespace

const char* name_of(ModelKind kind) {
  switch (kind) {
    case ModelKind::kSafetensors:
      return "a safetensors file";
    case ModelKind::kOnnx:
      return "an ONNX file";
    case ModelKind::kHdf5:
      return "an HDF5 file (Keras)";
    case ModelKind::kPickle:
      return "a PyTorch file (pickle)";
    case ModelKind::kZip:
      return "a zip archive";
    case ModelKind::kUnknown:
      break;
  }
  return "a file of an unknown kind";
}

ModelKind kind_of_bytes(std::span<const std::byte> beginning, uint64_t file_bytes) {
  std::string_view bytes(reinterpret_cast<const char*>(beginning.data()), beginning.size());
  bytes = bytes.substr(0, std::min<uint64_t>(bytes.size(), file_bytes));
  if (is_safetensors(bytes)) return ModelKind::kSafetensors;
  if (is_hdf5(bytes)) return ModelKind::kHdf5;
  if (is_old_pickle(bytes)) return ModelKind::kPickle;
  if (begins_with(bytes, "PK\x03\x04"sv)) return kind_of_zip(bytes);
  if (is_onnx(bytes)) return ModelKind::kOnnx;
  return ModelKind::kUnknown;
}

ModelKind kind_of_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) throw UsageError("there is no file '" + path + "'");
  if (error) throw_io_error("read", path, error.value());
  if (status.type() != fs::file_type::regular) {
    throw UsageError("'" + path + "' is " +
                     (status.type() == fs::file_type::directory ? "a folder" : "no regular file") +
                     "; expected a model file");
  }
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) throw_io_error("read", path, errno);
  std::vector<std::byte> beginning(kKindBytes);
  in.read(reinterpret_cast<char*>(beginning.data()), static_cast<std::streamsize>(beginning.size()));
  if (in.bad()) throw_io_error("read", path, errno);
  const auto count = static_cast<size_t>(in.gcount());
  const auto size = fs::file_size(path, error);
  if (error) throw_io_error("read", path, error.value());
  return kind_of_bytes(std::span(beginning).first(count), size);
}

std::string not_read(const std::string& path, ModelKind kind, const std::string& wanted) {
  return "'" + path + "' is " + name_of(kind) + "; expected " + wanted + how_to_convert(path, kind);
}

ModelKind require_model(const std::string& path) {
  const ModelKind kind = kind_of_file(path);
  if (kind != ModelKind::kSafetensors && kind != ModelKind::kOnnx)
    throw FormatError(not_read(path, kind, "an ONNX or a safetensors file"));
  return kind;
}

}  // namespace evenkeel
