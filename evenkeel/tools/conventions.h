// What "momentum" and "running variance" mean where a model comes from, converted to ours and said in words.
//
//   new_batch_weight_of(Dialect::kOnnx, 0.9)                     // 0.1
//   in_words(0.1, RunningVariance::kUnbiased)
//   // "weight of a new batch 0.1 (PyTorch momentum 0.1, Keras/ONNX momentum 0.9); running variance unbiased (n-1)"
#pragma once

#include <optional>
#include <string>

namespace evenkeel::tools {

enum class Dialect { kEvenkeel, kPyTorch, kKeras, kOnnx };
// "evenkeel", "PyTorch", "Keras", "ONNX".
const char* name_of(Dialect dialect);

// PyTorch's momentum is the weight of the new batch, as ours; that of Keras and ONNX is the weight of what was there before. Rounded to 9
// decimals: 1 - 0.9 is 0.1, also where 0.9 was kept as a float.
double new_batch_weight_of(Dialect dialect, double momentum);
double momentum_of(Dialect dialect, double new_batch_weight);

// Divisor of the variance that the running average is made of.
enum class RunningVariance { kUnbiased, kBiased, kUnknown };
// What each framework stores: PyTorch n - 1; ONNX n; Keras n, but n - 1 where TensorFlow's fused kernel ran: unknown. Ours stands in the file.
RunningVariance usual_running_variance(Dialect dialect);
// `variance` of n values, from one convention to the other; as it is where one of them is unknown. Throws UsageError for n < 2, where the
// unbiased one does not exist.
double converted_variance(double variance, double n, RunningVariance from, RunningVariance to);

// One sentence without a point. No weight: the plain average of all batches (PyTorch's momentum = None).
std::string weight_in_words(std::optional<double> new_batch_weight);
std::string variance_in_words(RunningVariance variance);
std::string in_words(std::optional<double> new_batch_weight, RunningVariance variance);

}  // namespace evenkeel::tools
