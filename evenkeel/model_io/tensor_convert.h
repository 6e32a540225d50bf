// Tensors of safetensors files and of ONNX models as one another, and as the float32 that models compute with.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "evenkeel/core/tensor.h"
#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/model_io/safetensors.h"

namespace evenkeel {

// The words of safetensors ("F16", "BOOL", "I64") and the numbers of ONNX for the same type; none where the other has no such type.
std::optional<onnx::ElementType> element_type_of(std::string_view dtype);
std::optional<std::string> dtype_of(onnx::ElementType type);

onnx::TensorValue to_onnx(const std::string& name, const Tensor& tensor);
// None for types that ONNX has no number for here (F8, F4, ...).
std::optional<onnx::TensorValue> to_onnx(const CarriedTensor& tensor);
// Adds the tensor to the file, as one that is held or one that is carried. False, and nothing is added, where safetensors has no such type
// (strings).
bool add_tensor(const onnx::TensorValue& tensor, TensorFile* file);

// In float32: F32 as it is, F64 rounded, F16 and BF16 exactly. None for other types, and where a number that is finite in F64 is not in F32.
std::optional<Tensor> to_f32(const Tensor& tensor);
std::optional<Tensor> to_f32(const CarriedTensor& tensor);

// A tensor of a file, whichever of the two kinds it is. Valid as long as the file is unchanged.
struct AnyTensor {
  const Tensor* held = nullptr;
  const CarriedTensor* carried = nullptr;

  std::string dtype() const { return held != nullptr ? name_of(held->dtype()) : carried->dtype; }
  const Shape& shape() const { return held != nullptr ? held->shape() : carried->shape; }
  std::optional<Tensor> f32() const { return held != nullptr ? to_f32(*held) : to_f32(*carried); }
};
std::map<std::string, AnyTensor> tensors_by_name(const TensorFile& file);

}  // namespace evenkeel
