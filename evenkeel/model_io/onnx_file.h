// ONNX files: the only part of the program that knows protobuf. Files are hostile: every size is checked against the file's length.
#pragma once

#include <string>
#include <string_view>

#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::onnx {

// Reads a model. Tensors kept outside the file ("external data") are read from the file's own folder, and only from there.
// Throws UsageError (no such file), IoError (unreadable), FormatError (not ONNX, truncated, sizes that disagree, names twice, paths that
// leave the folder), BackendError (its graph calls functions of the file itself).
Model load(const std::string& path);
// The same from memory; `folder` holds external tensors, "" = there are none to be had. `name` is for messages.
Model parse(std::string_view bytes, const std::string& name, const std::string& folder = "");

// The file's bytes. Nodes, tensors and values that were read and not changed are written as they were.
std::string serialize(const Model& model);
// Atomically. External tensors that were read stay external only if the file stays in its folder; else they are taken in. Throws UsageError
// when the result would be larger than protobuf's 2 GB.
void save(const std::string& path, const Model& model);

// A single tensor file (TensorProto), as the cases of ONNX's own tests have them.
TensorValue parse_tensor(std::string_view bytes, const std::string& name);

}  // namespace evenkeel::onnx
