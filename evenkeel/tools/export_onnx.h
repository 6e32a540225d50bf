// A model of ours as an ONNX model: opset 17, IR 8, norms as nodes of their own.
//
//   onnx::save("model.onnx", to_onnx(load_model("model.safetensors")));
#pragma once

#include <string>

#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {

struct ExportOptions {
  // Norms take the statistics of the batch (training_mode = 1) and give the new running statistics out, as NAME.running_mean.next and
  // NAME.running_var.next; dropout drops.
  bool training = false;
  // The input is an example before standardization (pixels / 255), and the network begins with (x - mean) / std. False: it is the caller's.
  bool standardization = true;
  std::string batch = "N";  // the name of the batch's extent
};

// Input "input" [N, ...], output "logits" [N, classes], without softmax. Parameters and running statistics keep the names of the state dict.
// Classes, the meaning of the input and that of the running statistics are metadata ("evenkeel.classes", ...).
// Throws BackendError naming the norm where ONNX has no words for its training: batch renorm, ghost batches, bias-corrected or cumulative
// running statistics, statistics that are kept but not used.
onnx::Model to_onnx(const Model& model, const ExportOptions& options = {});

}  // namespace evenkeel::tools
