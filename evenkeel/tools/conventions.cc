#include "evenkeel/tools/conventions.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "evenkeel/core/error.h"

namespace evenkeel::tools {
namespace {

bool counts_the_old(Dialect dialect) { return dialect == Dialect::kKeras || dialect == Dialect::kOnnx; }

// A float such as 0.9f is 0.899999976 as a double: nobody means that.
double rounded(double x) { return std::round(x * 1e9) / 1e9; }
// The shortest decimal that is this float, read again as a double; in any locale.
double shortest(float x) {
  const std::string text = fmt::format("{}", x);
  double value = static_cast<double>(x);
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}
double as_written(double x) {
  const auto narrow = static_cast<float>(x);
  return static_cast<double>(narrow) == x ? shortest(narrow) : x;
}

}  // namespace

const char* name_of(Dialect dialect) {
  switch (dialect) {
    case Dialect::kEvenkeel:
      return "evenkeel";
    case Dialect::kPyTorch:
      return "PyTorch";
    case Dialect::kKeras:
      return "Keras";
    case Dialect::kOnnx:
      return "ONNX";
  }
  return "";
}

double new_batch_weight_of(Dialect dialect, double momentum) {
  const double m = as_written(momentum);
  return rounded(counts_the_old(dialect) ? 1 - m : m);
}

double momentum_of(Dialect dialect, double new_batch_weight) {
  return rounded(counts_the_old(dialect) ? 1 - new_batch_weight : new_batch_weight);
}

RunningVariance usual_running_variance(Dialect dialect) {
  switch (dialect) {
    case Dialect::kPyTorch:
      return RunningVariance::kUnbiased;
    case Dialect::kOnnx:
      return RunningVariance::kBiased;
    default:
      return RunningVariance::kUnknown;
  }
}

double converted_variance(double variance, double n, RunningVariance from, RunningVariance to) {
  if (from == to || from == RunningVariance::kUnknown || to == RunningVariance::kUnknown) return variance;
  if (!(n >= 2)) throw UsageError(fmt::format("the unbiased variance needs at least 2 values, found {}", n));
  return to == RunningVariance::kUnbiased ? variance * n / (n - 1) : variance * (n - 1) / n;
}

std::string weight_in_words(std::optional<double> new_batch_weight) {
  if (!new_batch_weight) return "all batches count alike (PyTorch momentum None)";
  const double w = *new_batch_weight;
  if (w == 0) {
    return "weight of a new batch 0 (Keras/ONNX momentum 1): never updated, or a plain average over all batches, which "
           "ONNX cannot express (PyTorch momentum None is exported so)";
  }
  return fmt::format("weight of a new batch {:.6g} (PyTorch momentum {:.6g}, Keras/ONNX momentum {:.6g})", w,
                     momentum_of(Dialect::kPyTorch, w), momentum_of(Dialect::kOnnx, w));
}

std::string variance_in_words(RunningVariance variance) {
  switch (variance) {
    case RunningVariance::kUnbiased:
      return "running variance unbiased (n-1)";
    case RunningVariance::kBiased:
      return "running variance biased (n)";
    case RunningVariance::kUnknown:
      break;
  }
  return "running variance biased or unbiased: the file does not say";
}

std::string in_words(std::optional<double> new_batch_weight, RunningVariance variance) {
  return weight_in_words(new_batch_weight) + "; " + variance_in_words(variance);
}

}  // namespace evenkeel::tools
