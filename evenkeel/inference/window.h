// Windows over the positions of space, as ONNX's attributes say them: kernel_shape, strides, dilations, pads, auto_pad, ceil_mode.
#pragma once

#include "evenkeel/engine/onednn_inference.h"
#include "evenkeel/inference/builder.h"

namespace evenkeel::inference {

// For an input with the extents `space`. `kernel`: from the weights, or empty where only the attribute says it.
dnn::Window window_of(const Builder& builder, const Shape& space, const Shape& kernel);
// Extents of the output of a convolution or a pool. Throws FormatError where the window does not fit.
Shape window_extents(const Builder& builder, const Shape& space, const dnn::Window& window, bool ceil_mode = false);
// The maps of onnx nodes (Relu, Clip, ...): empty where the node is none.
std::vector<dnn::Map> maps_of(const Builder& builder, const onnx::Node& node);
// All maps of the chain that the node at hand heads.
std::vector<dnn::Map> chain_tail(const Builder& builder);

// Operations keep their memory for as long as the steps live.
void add_operation(Builder& builder, std::unique_ptr<dnn::Operation> operation, Buffer a, Buffer b, Buffer y);

}  // namespace evenkeel::inference
