// Named tensors and text metadata in one .safetensors file (docs: the format is 8 bytes of header
// length, a JSON header, data).
//   TensorFile file;
//   file.metadata["format"] = "pt";
//   file.tensors.emplace_back("weight", Tensor(DType::kF32, {2, 3}));
//   write_safetensors("model.safetensors", file);
//   const Tensor* weight = read_safetensors("model.safetensors").find("weight");
// Files are hostile: every size is checked against the file and for overflow before it is used.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel {

// A tensor whose element type (F16, BF16, BOOL, F8_E4M3, one of tomorrow) has no DType: its bytes are
// kept as they are, so that a tool that changes other tensors writes it back unharmed.
struct CarriedTensor {
  std::string name;
  std::string dtype;  // as in the file
  Shape shape;
  std::vector<std::byte> data;
};

struct TensorFile {
  std::map<std::string, std::string> metadata;
  std::vector<std::pair<std::string, Tensor>> tensors;  // in the order of the header; names differ
  std::vector<CarriedTensor> carried;                   // likewise; no name is in both

  // The tensor of that name, or null. Valid until `tensors` changes. Linear in the number of
  // tensors.
  const Tensor* find(std::string_view name) const;
  Tensor* find(std::string_view name);
};

// The content of a whole file in memory. name_for_messages stands for the file in messages.
// Refuses (FormatError): a header longer than 100 MB or than the file, JSON that is not what the
// format asks for or is nested deeper, a key given twice, a range that is not product(shape) *
// element size, lies outside the data or overflows, and ranges that do not tile the data: every
// byte belongs to exactly one tensor. Empty tensors may share an offset, at a boundary. Files of
// another kind (pickles, HDF5, ONNX) are refused with a sentence on what to do about them. Allocates
// in proportion to bytes.size(), whatever the header says.
TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name_for_messages);

// parse_safetensors of the file `path`; further UsageError when it is missing, IoError when it
// cannot be read.
TensorFile read_safetensors(const std::string& path);

// The bytes of `file`, a pure function of it: header entries in the order given, carried ones last;
// data begin at a multiple of 8 and are laid out by falling element size (equal sizes in the order
// given), so that every tensor is aligned to its element. Throws UsageError when a name is given
// twice, is "__metadata__" or is not UTF-8, or when the data of a carried tensor do not fit its shape.
std::vector<std::byte> serialize_safetensors(const TensorFile& file);

// Assigns those bytes to the file `path`, atomically and without a copy of the data; further throws
// what write_file_atomically throws.
void write_safetensors(const std::string& path, const TensorFile& file);

}  // namespace evenkeel
