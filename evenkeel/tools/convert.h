// A model file as one of another kind: `evenkeel convert`.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel::tools {

struct ConvertOptions {
  StateDictOptions weights;  // where IN holds weights alone
  ExportOptions onnx;        // where OUT is ONNX
};

struct Conversion {
  std::string from, to;               // "a state dict", "an ONNX model", ...
  std::string architecture;           // of the result or of what was read; "": not known
  size_t tensors = 0;                 // written
  std::vector<std::string> left_out;  // tensors that the new kind has no room for, with the reason
};

// By what is in `in` and the extension of `out`:
//   our model                       -> .onnx          the network, by to_onnx
//                                   -> .safetensors   a plain state dict
//   a state dict, architecture      -> .onnx, .safetensors   the network; our model
//   ONNX                            -> .safetensors   all initializers, and constants that are parameters, by their names; of our own export the parameters and statistics
//   Keras .h5                       -> .safetensors   its batch norms, by PyTorch's names
// Writes atomically. Throws UsageError when `out` is `in`, or has another extension, when there is no such conversion, or options are given
// that change nothing; else what reading and writing throw.
Conversion convert(const std::string& in, const std::string& out, const ConvertOptions& options);

}  // namespace evenkeel::tools
