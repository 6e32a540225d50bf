#include "evenkeel/model_io/tensor_convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

namespace evenkeel {
namespace {

using onnx::ElementType;

struct SameType {
  const char* dtype;
  ElementType type;
};
constexpr SameType kSameTypes[] = {
    {"F32", ElementType::kFloat},     {"F64", ElementType::kDouble}, {"F16", ElementType::kFloat16},
    {"BF16", ElementType::kBfloat16}, {"I64", ElementType::kInt64},  {"I32", ElementType::kInt32},
    {"I16", ElementType::kInt16},     {"I8", ElementType::kInt8},    {"U64", ElementType::kUint64},
    {"U32", ElementType::kUint32},    {"U16", ElementType::kUint16}, {"U8", ElementType::kUint8},
    {"BOOL", ElementType::kBool},
};

std::optional<DType> held_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return DType::kF32;
    case ElementType::kDouble:
      return DType::kF64;
    case ElementType::kInt64:
      return DType::kI64;
    case ElementType::kInt32:
      return DType::kI32;
    case ElementType::kUint8:
      return DType::kU8;
    default:
      return {};
  }
}

Tensor f32_of(const Shape& shape, const std::vector<float>& values) {
  Tensor tensor(DType::kF32, shape);
  std::copy(values.begin(), values.end(), tensor.values<float>().begin());
  return tensor;
}

}  // namespace

std::optional<ElementType> element_type_of(std::string_view dtype) {
  for (const SameType& same : kSameTypes) {
    if (same.dtype == dtype) return same.type;
  }
  return {};
}

std::optional<std::string> dtype_of(ElementType type) {
  for (const SameType& same : kSameTypes) {
    if (same.type == type) return same.dtype;
  }
  return {};
}

onnx::TensorValue to_onnx(const std::string& name, const Tensor& tensor) {
  onnx::TensorValue value;
  value.name = name;
  value.type = *element_type_of(name_of(tensor.dtype()));
  value.dims = tensor.shape();
  value.data = onnx::Bytes::copy_of({tensor.raw(), tensor.bytes()});
  return value;
}

std::optional<onnx::TensorValue> to_onnx(const CarriedTensor& tensor) {
  const auto type = element_type_of(tensor.dtype);
  if (!type) return {};
  onnx::TensorValue value;
  value.name = tensor.name;
  value.type = *type;
  value.dims = tensor.shape;
  value.data = onnx::Bytes::copy_of(tensor.data);
  return value;
}

bool add_tensor(const onnx::TensorValue& value, TensorFile* file) {
  const auto dtype = dtype_of(value.type);
  if (!dtype) return false;
  const std::span<const std::byte> data = value.data.view();
  if (const auto held = held_type(value.type)) {
    Tensor tensor(*held, value.dims);
    EK_ASSERT(tensor.bytes() == data.size());
    if (!data.empty()) std::memcpy(tensor.raw(), data.data(), data.size());
    file->tensors.emplace_back(value.name, std::move(tensor));
  } else {
    file->carried.push_back({value.name, *dtype, value.dims, {data.begin(), data.end()}});
  }
  return true;
}

std::optional<Tensor> to_f32(const Tensor& tensor) {
  if (tensor.dtype() == DType::kF32) return tensor.clone();
  if (tensor.dtype() != DType::kF64) return {};
  std::vector<float> values;
  values.reserve(static_cast<size_t>(tensor.count()));
  for (const double value : tensor.values<double>()) {
    // Above the middle of the largest float and what would come next; the cast of more is undefined.
    if (std::isfinite(value) && std::abs(value) >= 0x1.ffffffp127) return {};
    values.push_back(static_cast<float>(value));
  }
  return f32_of(tensor.shape(), values);
}

std::optional<Tensor> to_f32(const CarriedTensor& tensor) {
  if (tensor.dtype != "F16" && tensor.dtype != "BF16") return {};
  return f32_of(tensor.shape, onnx::floats_of(*to_onnx(tensor)));
}

std::map<std::string, AnyTensor> tensors_by_name(const TensorFile& file) {
  std::map<std::string, AnyTensor> all;
  for (const auto& [name, tensor] : file.tensors) all[name].held = &tensor;
  for (const CarriedTensor& tensor : file.carried) all[tensor.name].carried = &tensor;
  return all;
}

}  // namespace evenkeel
