#include "evenkeel/tools/fold_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace evenkeel::tools {
namespace {

// Half a step above the largest number of a type: from there on values round to infinity.
double limit_of(onnx::ElementType type) {
  switch (type) {
    case onnx::ElementType::kFloat16:
      return 65520.0;
    case onnx::ElementType::kBfloat16:
      return std::ldexp(511.0 / 256.0, 127);
    case onnx::ElementType::kFloat:
      return std::ldexp(33554431.0 / 16777216.0, 127);
    default:
      return HUGE_VAL;
  }
}

}  // namespace

int64_t LinearForm::inputs(const Shape& dims) const {
  switch (form) {
    case WeightForm::kConv:
      return dims[1] * groups;
    case WeightForm::kConvTranspose:
    case WeightForm::kMatrix:
      return dims[0];
    case WeightForm::kMatrixOfRows:
      return dims[1];
  }
  return 0;
}

int64_t LinearForm::outputs(const Shape& dims) const {
  switch (form) {
    case WeightForm::kConv:
    case WeightForm::kMatrixOfRows:
      return dims[0];
    case WeightForm::kConvTranspose:
      return dims[1] * groups;
    case WeightForm::kMatrix:
      return dims[1];
  }
  return 0;
}

std::string LinearForm::refusal(const Shape& dims) const {
  const bool conv = form == WeightForm::kConv || form == WeightForm::kConvTranspose;
  if (conv && dims.size() < 3)
    return fmt::format("weights {} where a convolution has 3 extents or more", to_string(dims));
  if (!conv && dims.size() != 2) return fmt::format("weights {}, which are no matrix", to_string(dims));
  if (groups < 1 || dims[0] % groups != 0)
    return fmt::format("weights {}, which {} groups do not divide", to_string(dims), groups);
  return "";
}

void scale_outputs(const LinearForm& form, std::span<const double> scale, Weights& weights) {
  for_each_pair(form, weights, [&](size_t output, size_t, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) weights.values[i] *= scale[output];
  });
}

void scale_inputs(const LinearForm& form, std::span<const double> scale, Weights& weights) {
  for_each_pair(form, weights, [&](size_t, size_t input, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) weights.values[i] *= scale[input];
  });
}

std::vector<double> response_to(const LinearForm& form, std::span<const double> value, const Weights& weights) {
  std::vector<double> response(static_cast<size_t>(form.outputs(weights.dims)), 0.0);
  for_each_pair(form, weights, [&](size_t output, size_t input, size_t first, size_t last) {
    double sum = 0;
    for (size_t i = first; i < last; ++i) sum += weights.values[i];
    response[output] += sum * value[input];
  });
  return response;
}

bool is_blind_to(const LinearForm& form, std::span<const double> value, const Weights& weights) {
  bool blind = true;
  for_each_pair(form, weights, [&](size_t, size_t input, size_t first, size_t last) {
    if (value[input] == 0) return;
    for (size_t i = first; i < last; ++i) blind = blind && weights.values[i] == 0;
  });
  return blind;
}

std::optional<Weights> affine_addend(const Weights* addend, std::span<const double> factor,
                                     std::span<const double> value, onnx::ElementType type) {
  const auto columns = static_cast<int64_t>(value.size());
  if (addend == nullptr) return Weights{type, {columns}, {value.begin(), value.end()}};
  if (addend->dims.size() > 2) return std::nullopt;
  Shape dims = addend->dims;
  while (dims.size() < 2) dims.insert(dims.begin(), 1);
  const int64_t rows = dims[0];
  if (dims[1] != 1 && dims[1] != columns) return std::nullopt;
  constexpr int64_t kMostValues =
      1 << 24;  // a column spread to a matrix: two short vectors of a file must not ask for all memory
  if (rows > 1 && dims[1] == 1 && rows > kMostValues / std::max<int64_t>(columns, 1)) return std::nullopt;
  Weights result{addend->type, rows == 1 ? Shape{columns} : Shape{rows, columns}, {}};
  result.values.reserve(static_cast<size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const auto at = static_cast<size_t>(dims[1] == 1 ? r : r * columns + c), column = static_cast<size_t>(c);
      result.values.push_back(factor[column] * addend->values[at] + value[column]);
    }
  }
  return result;
}

int64_t first_unstorable(const Weights& weights) {
  const double limit = limit_of(weights.type);
  for (size_t i = 0; i < weights.values.size(); ++i) {
    if (!(std::abs(weights.values[i]) < limit)) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace evenkeel::tools
