#include "tensors.h"

#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "arrays.h"
#include "evenkeel/core/error.h"
#include "evenkeel/data/arrays.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/data/npy.h"
#include "evenkeel/model_io/tensor_convert.h"

namespace py = pybind11;

namespace evenkeel::python {
namespace {

using Bytes = std::vector<std::byte>;

// Elements from `from` on, dimension by dimension, packed.
void pack(const ArrayView& view, size_t dimension, const std::byte* from, std::byte*& to) {
  const size_t size = size_bytes(view.dtype);
  if (dimension == view.shape.size()) {
    std::memcpy(to, from, size);
    to += size;
    return;
  }
  for (int64_t i = 0; i < view.shape[dimension]; ++i)
    pack(view, dimension + 1, from + i * view.strides[dimension] * static_cast<int64_t>(size), to);
}

Bytes packed(const ArrayView& view) {
  Bytes bytes(static_cast<size_t>(view.count()) * size_bytes(view.dtype));
  if (bytes.empty()) return bytes;
  std::byte* to = bytes.data();
  if (view.is_contiguous()) {
    std::memcpy(to, view.data, bytes.size());
  } else {
    pack(view, 0, static_cast<const std::byte*>(view.data), to);
  }
  return bytes;
}

template <class From>
Bytes widened(const Bytes& bytes) {
  Bytes wide(bytes.size() / sizeof(From) * sizeof(int64_t));
  for (size_t i = 0; i < bytes.size() / sizeof(From); ++i) {
    From value;
    std::memcpy(&value, bytes.data() + i * sizeof(From), sizeof(From));
    const int64_t whole = std::in_range<int64_t>(value) ? static_cast<int64_t>(value) : INT64_MAX;  // of uint64
    std::memcpy(wide.data() + i * sizeof(int64_t), &whole, sizeof whole);
  }
  return wide;
}

// fp16, bf16 and booleans as fp32, which has all of their values.
Bytes as_floats(const ArrayView& view, const Bytes& bytes) {
  Bytes wide(static_cast<size_t>(view.count()) * sizeof(float));
  if (view.dtype == DType::kBool) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      const float value = bytes[i] == std::byte{0} ? 0.0f : 1.0f;
      std::memcpy(wide.data() + i * sizeof value, &value, sizeof value);
    }
    return wide;
  }
  const CarriedTensor narrow{view.name, view.dtype == DType::kF16 ? "F16" : "BF16", view.shape, bytes};
  const std::optional<Tensor> floats = to_f32(narrow);
  if (!wide.empty()) std::memcpy(wide.data(), floats.value().raw(), wide.size());
  return wide;
}

// The array as an NPY file would hold it; `bytes` keeps its values.
data::NpyArray npy_of(const ArrayView& view, Bytes& bytes) {
  data::NpyArray array;
  bytes = packed(view);
  switch (view.dtype) {
    case DType::kU8:
      array.type = data::NpyType::kU8;
      break;
    case DType::kI32:
      array.type = data::NpyType::kI32;
      break;
    case DType::kI64:
      array.type = data::NpyType::kI64;
      break;
    case DType::kF32:
      array.type = data::NpyType::kF32;
      break;
    case DType::kF64:
      array.type = data::NpyType::kF64;
      break;
    case DType::kI8:
    case DType::kI16:
    case DType::kU16:
    case DType::kU32:
    case DType::kU64:
      array.type = data::NpyType::kI64;
      bytes = view.dtype == DType::kI8    ? widened<int8_t>(bytes)
              : view.dtype == DType::kI16 ? widened<int16_t>(bytes)
              : view.dtype == DType::kU16 ? widened<uint16_t>(bytes)
              : view.dtype == DType::kU32 ? widened<uint32_t>(bytes)
                                          : widened<uint64_t>(bytes);
      break;
    case DType::kF16:
    case DType::kBF16:
    case DType::kBool:
      array.type = data::NpyType::kF32;
      bytes = as_floats(view, bytes);
      break;
  }
  array.shape = view.shape;
  array.count = view.count();
  array.values = bytes;
  return array;
}

// Labels: whole numbers or booleans, [n] or [n, 1]. Throws UsageError for what looks like them and is not.
data::NpyArray labels_of(const ArrayView& view, Bytes& bytes) {
  if (view.shape.size() == 2 && view.shape[1] > 1) {
    throw UsageError(view.name + ": found the shape " + view.shape_text() + ", expected labels of shape [" +
                     std::to_string(view.shape[0]) + "]; of rows with a 1 for the class give " + view.name +
                     ".argmax(1)");
  }
  switch (view.dtype) {
    case DType::kF16:
    case DType::kBF16:
    case DType::kF32:
    case DType::kF64:
      throw UsageError(view.name + ": found floats, expected whole numbers as labels; give " + view.name +
                       ".astype('int64'), or of a tensor " + view.name + ".long()");
    case DType::kBool: {
      data::NpyArray array;
      bytes = packed(view);
      for (std::byte& value : bytes) value = value == std::byte{0} ? std::byte{0} : std::byte{1};
      array.type = data::NpyType::kU8;
      array.shape = view.shape;
      array.count = view.count();
      array.values = bytes;
      return array;
    }
    default:
      return npy_of(view, bytes);
  }
}

std::optional<evenkeel::DType> tensor_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return evenkeel::DType::kF32;
    case DType::kF64:
      return evenkeel::DType::kF64;
    case DType::kI64:
      return evenkeel::DType::kI64;
    case DType::kI32:
      return evenkeel::DType::kI32;
    case DType::kU8:
      return evenkeel::DType::kU8;
    default:
      return std::nullopt;
  }
}

// safetensors' names of the types that Tensor does not have.
const char* carried_type(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kBool:
      return "BOOL";
    case DType::kI8:
      return "I8";
    case DType::kI16:
      return "I16";
    case DType::kU16:
      return "U16";
    case DType::kU32:
      return "U32";
    default:
      return "U64";
  }
}

template <class T>
py::object numpy_of(const Tensor& tensor) {
  py::array_t<T> array(std::vector<py::ssize_t>(tensor.shape().begin(), tensor.shape().end()));
  const auto values = tensor.values<T>();
  if (!values.empty()) std::memcpy(array.mutable_data(), values.data(), values.size_bytes());
  return array;
}

}  // namespace

data::Dataset dataset_of(const std::string& name, const py::handle& x, const char* x_name, const py::handle& y,
                         const char* y_name, int64_t known_classes, data::Layout layout) {
  data::LoadOptions options;
  options.known_classes = known_classes;
  options.preprocess.layout = layout;
  Bytes x_bytes, y_bytes;
  const ArrayView view = view_of(x, x_name);
  if (layout == data::Layout::kChannelsFirst) {
    try {
      data::require_channels_first(x_name, view.shape);
    } catch (const UsageError&) {  // its advice is for files
      throw UsageError(std::string(x_name) + ": the shape " + view.shape_text() +
                       " looks like channels last, expected [n, channels, height, width]; transpose it, for instance "
                       "x.transpose(0, 3, 1, 2), or give [n, features] if the axes are right");
    }
  }
  const data::NamedArray examples{npy_of(view, x_bytes), x_name};
  try {
    if (y.is_none()) return data::dataset_of(name, examples, options);
    return data::dataset_of(name, examples, {labels_of(view_of(y, y_name), y_bytes), y_name}, options);
  } catch (const FormatError& error) {  // of a file; here it is the caller's array
    throw UsageError(error.what());
  }
}

std::shared_ptr<const TensorFile> tensors_of(const py::dict& state) {
  auto file = std::make_shared<TensorFile>();
  for (const auto& [key, value] : state) {
    const std::string name = py::str(key);
    const ArrayView view = view_of(value, name.c_str());
    Bytes bytes = packed(view);
    if (const auto type = tensor_type(view.dtype)) {
      Tensor tensor(*type, view.shape);
      if (!bytes.empty()) std::memcpy(tensor.raw(), bytes.data(), bytes.size());
      file->tensors.emplace_back(name, std::move(tensor));
    } else {
      file->carried.push_back({name, carried_type(view.dtype), view.shape, std::move(bytes)});
    }
  }
  return file;
}

py::object array_of(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case evenkeel::DType::kF32:
      return numpy_of<float>(tensor);
    case evenkeel::DType::kF64:
      return numpy_of<double>(tensor);
    case evenkeel::DType::kI64:
      return numpy_of<int64_t>(tensor);
    case evenkeel::DType::kI32:
      return numpy_of<int32_t>(tensor);
    default:
      return numpy_of<uint8_t>(tensor);
  }
}

py::dict state_of(const TensorFile& file) {
  py::dict state;
  for (const auto& [name, tensor] : file.tensors) state[py::str(name)] = array_of(tensor);
  return state;
}

}  // namespace evenkeel::python
