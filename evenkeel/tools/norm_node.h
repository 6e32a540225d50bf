// A BatchNormalization node of an ONNX model, whatever its opset: what it computes, and why it may not be taken for an affine map.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::tools {

// y = scale * x + shift, per channel.
struct Affine {
  std::vector<double> scale = {}, shift = {};
};

bool is_batch_norm(const onnx::Node& node);
// For tables and records: the node's name or, where it has none, that of its first output.
std::string short_name(const onnx::Node& node);
// Of a norm: the prefix that the names of its parameters have in PyTorch's and Keras' exports ("layer1.0.bn1" of "layer1.0.bn1.running_mean"),
// which stays the same from format to format, else the short name.
std::string norm_name(const onnx::Node& node);

// Inputs of the node, by their places.
inline constexpr size_t kNormGamma = 1, kNormBeta = 2, kNormMean = 3, kNormVar = 4;

struct NormNode {
  double eps = 1e-5;        // as the node computes with it: the attribute is a float
  double old_weight = 0.9;  // ONNX' momentum: the weight of the old running statistics
  bool batch_statistics =
      false;  // it normalizes by the batch: training_mode, is_test = 0, or opset 7 to 13 with more than one output
  bool spatial = true;  // false (opset 6 and 7): one set of statistics for every pixel
  // gamma, beta, mean, variance; empty where they are computed at run time or are no floating numbers.
  std::vector<double> gamma = {}, beta = {}, mean = {}, var = {};
  std::string computed = {};   // the first of them that is, as "the variance ('name')"; "" = all are constants
  bool has_statistics = true;  // mean and variance are constants

  int64_t channels() const { return static_cast<int64_t>(gamma.size()); }
};
// Throws FormatError when the node lacks an input or its constant parameters differ in length.
NormNode read_norm(const onnx::Node& node, int64_t opset, const onnx::Constants& constants);

// The parts that do not need the parameters.
double epsilon_of(const onnx::Node& node);
bool uses_batch_statistics(const onnx::Node& node, int64_t opset);

// What inference computes: scale = gamma / sqrt(var + eps), shift = beta - mean * scale.
Affine affine_of(const NormNode& norm);

}  // namespace evenkeel::tools
