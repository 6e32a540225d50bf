#include "evenkeel/tools/fold_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "evenkeel/core/error.h"

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

ScaledWeights::ScaledWeights(const onnx::TensorValue& stored, const LinearForm& form)
    : type_(stored.type), dims_(stored.dims), data_(stored.data), form_(form) {
  EK_ASSERT(data_.size() == static_cast<size_t>(element_count(dims_)) * onnx::size_bytes(type_));
}

namespace {

void multiply(std::span<const double> by, std::vector<double>& scale) {
  if (scale.empty()) scale.assign(by.size(), 1);
  for (size_t i = 0; i < by.size(); ++i) scale[i] *= by[i];
}

}  // namespace

void ScaledWeights::scale_outputs(std::span<const double> scale) { multiply(scale, outputs_); }
void ScaledWeights::scale_inputs(std::span<const double> scale) { multiply(scale, inputs_); }

template <class F>
void ScaledWeights::for_each_slice(F f) const {
  const int64_t outer = dims_[0], inner = dims_[1];
  const size_t width = onnx::size_bytes(type_);
  const size_t slice = outer == 0 ? 0 : static_cast<size_t>(element_count(dims_) / outer);
  if (slice == 0) return;
  const size_t kernel = slice / static_cast<size_t>(inner);
  const int64_t per_group = std::max<int64_t>(1, outer / form_.groups);
  const bool outputs_first = form_.form == WeightForm::kConv || form_.form == WeightForm::kMatrixOfRows;
  const std::vector<double>& of_first = outputs_first ? outputs_ : inputs_;
  const std::vector<double>& of_second = outputs_first ? inputs_ : outputs_;
  std::vector<double> values(slice);
  for (int64_t i = 0; i < outer; ++i) {
    const size_t at = static_cast<size_t>(i) * slice;
    onnx::read_elements(type_, data_.view().subspan(at * width, slice * width), std::span(values));
    if (!of_first.empty()) {
      const double factor = of_first[static_cast<size_t>(i)];
      for (double& value : values) value *= factor;
    }
    if (!of_second.empty()) {
      const double* factors = of_second.data() + i / per_group * inner;
      for (size_t k = 0; k < slice; ++k) values[k] *= factors[k / kernel];
    }
    f(at, std::span<const double>(values));
  }
}

template <class F>
void ScaledWeights::for_each_pair(F f) const {
  const int64_t inner = dims_[1];
  const int64_t per_group = std::max<int64_t>(1, dims_[0] / form_.groups);
  const bool outputs_first = form_.form == WeightForm::kConv || form_.form == WeightForm::kMatrixOfRows;
  for_each_slice([&](size_t at, std::span<const double> values) {
    const size_t kernel = values.size() / static_cast<size_t>(inner);
    const auto first = static_cast<int64_t>(at / values.size());
    for (int64_t j = 0; j < inner; ++j) {
      const auto i = static_cast<size_t>(first), k = static_cast<size_t>(first / per_group * inner + j);
      f(outputs_first ? i : k, outputs_first ? k : i, values.subspan(static_cast<size_t>(j) * kernel, kernel));
    }
  });
}

std::vector<double> ScaledWeights::response_to(std::span<const double> value) const {
  std::vector<double> response(static_cast<size_t>(outputs()), 0.0);
  for_each_pair([&](size_t output, size_t input, std::span<const double> kernel) {
    response[output] += std::accumulate(kernel.begin(), kernel.end(), 0.0) * value[input];
  });
  return response;
}

bool ScaledWeights::is_blind_to(std::span<const double> value) const {
  bool blind = true;
  for_each_pair([&](size_t, size_t input, std::span<const double> kernel) {
    const auto is_zero = [](double weight) { return weight == 0; };
    blind = blind && (value[input] == 0 || std::all_of(kernel.begin(), kernel.end(), is_zero));
  });
  return blind;
}

std::vector<double> ScaledWeights::largest_per_output() const {
  std::vector<double> largest(static_cast<size_t>(outputs()), 0.0);
  for_each_pair([&](size_t output, size_t, std::span<const double> kernel) {
    for (const double weight : kernel) largest[output] = std::max(largest[output], std::abs(weight));
  });
  return largest;
}

std::optional<ScaledWeights::Unstorable> ScaledWeights::unstorable() const {
  const double limit = limit_of(type_);
  std::optional<Unstorable> found;
  for_each_slice([&](size_t at, std::span<const double> values) {
    double sum =
        0;  // 0, unless one is beyond the limit or NaN: without a branch, so that the loop is a few vector instructions
    for (const double value : values) sum += std::abs(value) < limit ? 0.0 : 1.0;
    if (found || sum == 0) return;
    for (size_t i = 0; i < values.size() && !found; ++i) {
      if (!(std::abs(values[i]) < limit)) found = Unstorable{static_cast<int64_t>(at + i), values[i]};
    }
  });
  return found;
}

onnx::TensorValue ScaledWeights::tensor(const std::string& name) const {
  const size_t width = onnx::size_bytes(type_);
  onnx::TensorValue tensor{.name = name, .type = type_, .dims = dims_, .data = {}};
  tensor.data = onnx::Bytes::made(data_.size(), [&](std::byte* to) {
    for_each_slice(
        [&](size_t at, std::span<const double> values) { onnx::write_elements(type_, values, to + at * width); });
  });
  return tensor;
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

std::optional<std::vector<double>> per_channel(const Weights& constant, size_t rank, int64_t channels) {
  Shape dims = constant.dims;
  if (dims.size() > rank) return std::nullopt;
  dims.insert(dims.begin(), rank - dims.size(), 1);
  for (size_t axis = 0; axis < rank; ++axis) {
    if (dims[axis] != 1 && !(axis == 1 && dims[axis] == channels)) return std::nullopt;
  }
  if (dims[1] == 1) return std::vector<double>(static_cast<size_t>(channels), constant.values.at(0));
  return constant.values;
}

int64_t first_unstorable(const Weights& weights) {
  const double limit = limit_of(weights.type);
  for (size_t i = 0; i < weights.values.size(); ++i) {
    if (!(std::abs(weights.values[i]) < limit)) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace evenkeel::tools
