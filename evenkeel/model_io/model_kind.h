// What kind of model a file holds, told by its bytes and not by its name, and what to do about the kinds that are not read.
//
//   switch (kind_of_file(path)) {
//     case ModelKind::kSafetensors: ...
//     case ModelKind::kOnnx: ...
//     default: throw FormatError(not_read(path, kind, "an ONNX or a safetensors file"));
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace evenkeel {

enum class ModelKind {
  kSafetensors,
  kOnnx,
  kHdf5,     // Keras' .h5, .hdf5, .weights.h5
  kPickle,   // PyTorch's .pt, .pth, .th, .bin: of old, or a zip with a pickle in it; never opened
  kZip,      // another zip: .keras, .npz
  kUnknown,  // none of these, or too short to tell
};

// "a safetensors file", "an ONNX file", "an HDF5 file (Keras)", "a PyTorch file (pickle)", "a zip archive", "a file of an unknown kind".
const char* name_of(ModelKind kind);

// From the beginning of a file (kKindBytes of it, or all) and the size of the whole. A file of which the end is missing keeps its kind, so
// that its reader can say what is wrong.
inline constexpr size_t kKindBytes = 4096;
ModelKind kind_of_bytes(std::span<const std::byte> beginning, uint64_t file_bytes);

// Reads no more than the beginning. Throws UsageError when there is no such file or it is a folder or a device, IoError when it cannot be
// read.
ModelKind kind_of_file(const std::string& path);

// One sentence for a file that is not what was wanted ("an ONNX or a safetensors file"): what it is, and for the kinds that are read nowhere
// here the line of Python that converts it.
std::string not_read(const std::string& path, ModelKind kind, const std::string& wanted);

// The kind, where it is safetensors or ONNX. Throws FormatError (not_read) for every other kind. A Keras file is other, too: only inspect
// reads it.
ModelKind require_model(const std::string& path);

}  // namespace evenkeel
