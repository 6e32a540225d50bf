#include "arrays.h"

#include <array>
#include <bit>
#include <string_view>
#include <utility>

#include "dlpack.h"
#include "evenkeel/core/error.h"

namespace py = pybind11;

namespace evenkeel::python {
namespace {

static_assert(std::endian::native == std::endian::little);

struct TypeRow {
  const char* name;
  size_t bytes;
};
constexpr std::array<TypeRow, 13> kTypes = {{{"fp32", 4},
                                             {"bf16", 2},
                                             {"fp16", 2},
                                             {"fp64", 8},
                                             {"int8", 1},
                                             {"int16", 2},
                                             {"int32", 4},
                                             {"int64", 8},
                                             {"uint8", 1},
                                             {"uint16", 2},
                                             {"uint32", 4},
                                             {"uint64", 8},
                                             {"bool", 1}}};

[[noreturn]] void refuse(const std::string& name, const std::string& sentence) {
  throw UsageError(name + " " + sentence);
}

constexpr const char* kTypesKnown = "fp32, fp64, fp16, bf16, integers or bool";

// A signed or unsigned integer of so many bytes.
DType integer_of(bool has_sign, size_t bytes) {
  switch (bytes) {
    case 1:
      return has_sign ? DType::kI8 : DType::kU8;
    case 2:
      return has_sign ? DType::kI16 : DType::kU16;
    case 4:
      return has_sign ? DType::kI32 : DType::kU32;
    default:
      return has_sign ? DType::kI64 : DType::kU64;
  }
}

// The text of the Python error that was raised, which is thereby dealt with.
std::string text_of(const py::error_already_set& error) {
  try {
    return py::str(error.value());
  } catch (const py::error_already_set&) {
    return "an error without a text";
  }
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// Elements of 8 bytes at an odd address are legal in NumPy, but neither the compiler nor the processor need bear them.
void require_aligned(const ArrayView& view) {
  if (reinterpret_cast<uintptr_t>(view.data) % size_bytes(view.dtype) == 0) return;
  refuse(view.name, "begins at an address that is no multiple of its element; give a copy (numpy.array(x))");
}

// Strides of the shape in C's order.
void set_contiguous(ArrayView& view) {
  view.strides.resize(view.shape.size());
  int64_t step = 1;
  for (size_t i = view.shape.size(); i-- > 0;) {
    view.strides[i] = step;
    step *= view.shape[i];
  }
}

// --- the buffer protocol ---------------------------------------------------------------------------------------------

DType buffer_type(const std::string& name, const Py_buffer& buffer) {
  const std::string whole = buffer.format == nullptr ? "B" : buffer.format;
  const auto bytes = static_cast<size_t>(buffer.itemsize);
  std::string code = whole;
  const char order = code.empty() ? ' ' : code[0];
  if (order == '@' || order == '=' || order == '<' || order == '>' || order == '!') code.erase(0, 1);
  if ((order == '>' || order == '!') && bytes > 1) {
    refuse(name, "has big-endian elements ('" + whole +
                     "'); give it in this machine's order: x.astype(x.dtype.newbyteorder('='))");
  }
  if (code.size() == 1 && bytes <= 8) {
    switch (code[0]) {
      case 'f':
        return DType::kF32;
      case 'd':
        return DType::kF64;
      case 'e':
        return DType::kF16;
      case '?':
        return DType::kBool;
      case 'b':
      case 'h':
      case 'i':
      case 'l':
      case 'q':
      case 'n':
        return integer_of(true, bytes);
      case 'B':
      case 'H':
      case 'I':
      case 'L':
      case 'Q':
      case 'N':
        return integer_of(false, bytes);
      default:
        break;
    }
  }
  refuse(name, "has elements of the format '" + whole + "'; expected " + kTypesKnown);
}

ArrayView view_of_buffer(py::handle object, const char* name) {
  auto* raw = new Py_buffer{};
  const auto release = [](void* held) {
    auto* buffer = static_cast<Py_buffer*>(held);
    if (buffer->obj != nullptr) PyBuffer_Release(buffer);
    delete buffer;
  };
  ArrayView view;
  view.name = name;
  view.owner = std::shared_ptr<void>(raw, release);
  if (PyObject_GetBuffer(object.ptr(), raw, PyBUF_RECORDS_RO) != 0) {
    const std::string why = text_of(py::error_already_set());
    refuse(name, "(" + type_name(object) + ") cannot be read as an array: " + why);
  }
  view.data = raw->buf;
  view.dtype = buffer_type(view.name, *raw);
  view.writable = raw->readonly == 0;
  view.shape.assign(raw->shape, raw->shape + raw->ndim);
  set_contiguous(view);
  for (int i = 0; i < raw->ndim && raw->strides != nullptr; ++i) {  // null (ctypes): contiguous
    if (raw->strides[i] % raw->itemsize != 0 && raw->shape[i] > 1) {
      refuse(name, "has steps of " + std::to_string(raw->strides[i]) + " bytes between elements of " +
                       std::to_string(raw->itemsize) + " (a field of records?); give a copy (numpy.array(x))");
    }
    view.strides[static_cast<size_t>(i)] = raw->strides[i] / raw->itemsize;
  }
  require_aligned(view);
  return view;
}

// --- DLPack ----------------------------------------------------------------------------------------------------------

const char* device_name(int64_t type) {
  switch (type) {
    case 2:
    case 13:
      return "a CUDA device";
    case 7:
      return "a Vulkan device";
    case 8:
      return "a Metal device";
    case 10:
    case 11:
      return "a ROCm device";
    default:
      return "another device than the CPU";
  }
}

void require_cpu(py::handle object, const std::string& name) {
  int64_t type = 0, id = 0;
  try {
    const py::tuple device = object.attr("__dlpack_device__")();
    type = py::int_(device[0]);
    id = py::int_(device[1]);
  } catch (py::error_already_set& error) {
    refuse(name, "(" + type_name(object) + ") does not say where it lies: " + text_of(error));
  }
  if (type == dlpack::kCpu || type == dlpack::kCudaHost) return;
  refuse(name, "lies on " + std::string(device_name(type)) + " (device " + std::to_string(id) +
                   "); evenkeel computes on the CPU: give x.cpu()");
}

DType dlpack_type(const std::string& name, dlpack::DataType type) {
  if (type.lanes == 1) {
    const bool whole = type.bits == 8 || type.bits == 16 || type.bits == 32 || type.bits == 64;
    if (type.code == dlpack::kFloat && type.bits == 32) return DType::kF32;
    if (type.code == dlpack::kFloat && type.bits == 64) return DType::kF64;
    if (type.code == dlpack::kFloat && type.bits == 16) return DType::kF16;
    if (type.code == dlpack::kBfloat && type.bits == 16) return DType::kBF16;
    if (type.code == dlpack::kBool && type.bits == 8) return DType::kBool;
    if (type.code == dlpack::kInt && whole) return integer_of(true, type.bits / 8u);
    if (type.code == dlpack::kUnsigned && whole) return integer_of(false, type.bits / 8u);
  }
  refuse(name, "has elements of DLPack's type (" + std::to_string(type.code) + ", " + std::to_string(type.bits) + ", " +
                   std::to_string(type.lanes) + "); expected " + kTypesKnown);
}

// The capsule that the object gives, of either version of the protocol.
py::object capsule_of(py::handle object, const std::string& name) {
  const py::object give = object.attr("__dlpack__");
  try {
    return give(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) refuse(name, "(" + type_name(object) + ") gives no array: " + text_of(error));
  }
  try {
    return give();
  } catch (py::error_already_set& error) {
    refuse(name, "(" + type_name(object) + ") gives no array: " + text_of(error));
  }
}

// Takes what a capsule holds: the new name tells its destructor that the deleter is ours to call.
template <class Managed>
std::shared_ptr<void> take(PyObject* capsule, const char* used_name, Managed* managed) {
  PyCapsule_SetName(capsule, used_name);
  return {static_cast<void*>(managed), [](void* held) {
            auto* tensor = static_cast<Managed*>(held);
            if (tensor->deleter != nullptr) tensor->deleter(tensor);
          }};
}

ArrayView view_of_dlpack(py::handle object, const char* name) {
  require_cpu(object, name);
  const py::object capsule = capsule_of(object, name);
  const dlpack::Tensor* tensor = nullptr;
  ArrayView view;
  view.name = name;
  view.writable = true;  // version 0 cannot say otherwise
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    tensor = &managed->tensor;
    view.owner = take(capsule.ptr(), "used_dltensor", managed);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<dlpack::VersionedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->major != 1) {
      refuse(name, "comes by version " + std::to_string(managed->major) + " of DLPack; expected version 0 or 1");
    }
    tensor = &managed->tensor;
    view.writable = (managed->flags & dlpack::kReadOnly) == 0;
    view.owner = take(capsule.ptr(), "used_dltensor_versioned", managed);
  } else {
    refuse(name, "(" + type_name(object) + ") gives no capsule of DLPack, or one that was used before");
  }
  view.dtype = dlpack_type(name, tensor->dtype);
  view.data = static_cast<std::byte*>(tensor->data) + tensor->byte_offset;
  view.shape.assign(tensor->shape, tensor->shape + tensor->ndim);
  set_contiguous(view);
  if (tensor->strides != nullptr) view.strides.assign(tensor->strides, tensor->strides + tensor->ndim);
  require_aligned(view);
  return view;
}

bool has_dlpack(py::handle object) {
  return !PyType_Check(object.ptr()) && py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__");
}

bool has_buffer(py::handle object) {
  return PyObject_CheckBuffer(object.ptr()) != 0 && !PyBytes_Check(object.ptr()) && !PyUnicode_Check(object.ptr());
}

// What __dlpack__ would say less plainly.
void require_no_grad(py::handle object, const char* name) {
  const py::object flag = py::getattr(object, "requires_grad", py::none());
  if (flag.is_none() || !PyBool_Check(flag.ptr()) || flag.ptr() != Py_True) return;
  refuse(name, "requires grad, and autograd does not see what is done here; give " + std::string(name) +
                   ".detach(), or use evenkeel.torch");
}

// A tensor of PyTorch may be the negative of what lies in its memory, and DLPack has no word for it.
void require_no_negative_bit(py::handle object, const char* name) {
  const py::object ask = py::getattr(object, "is_neg", py::none());
  if (PyCallable_Check(ask.ptr()) == 0) return;
  const auto flag = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(ask.ptr()));
  if (!flag) PyErr_Clear();
  if (flag.ptr() != Py_True) return;
  refuse(name, "is the negative of what lies in its memory (PyTorch's negative bit, as of z.conj().imag); give " +
                   std::string(name) + ".resolve_neg()");
}

// numpy.ma's arrays have a buffer, in which what is masked is a value like any other.
void require_nothing_masked(py::handle object, const char* name) {
  if (std::string_view(Py_TYPE(object.ptr())->tp_name) == "numpy.ndarray" || !py::hasattr(object, "mask") ||
      !py::hasattr(object, "filled"))
    return;
  if (!py::cast<bool>(py::module_::import("numpy").attr("any")(object.attr("mask")))) return;
  refuse(name, "is a masked array, and its mask would be lost; give " + std::string(name) +
                   ".data, and weights, 0 for what is masked, where they can be given");
}

}  // namespace

const char* name_of(DType dtype) { return kTypes[static_cast<size_t>(dtype)].name; }
size_t size_bytes(DType dtype) { return kTypes[static_cast<size_t>(dtype)].bytes; }

int64_t ArrayView::count() const {
  int64_t product = 1;
  for (const int64_t extent : shape) product *= extent;
  return product;
}

bool ArrayView::is_contiguous() const {
  if (count() == 0) return true;
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] > 1 && strides[i] != step) return false;
    step *= shape[i];
  }
  return true;
}

std::string ArrayView::shape_text() const {
  std::string text = "[";
  for (const int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

bool is_array(py::handle object) { return object && (has_buffer(object) || has_dlpack(object)); }

ArrayView view_of(py::handle object, const char* name) {
  if (has_buffer(object)) {
    require_nothing_masked(object, name);
    return view_of_buffer(object, name);
  }
  if (has_dlpack(object)) {
    require_no_grad(object, name);
    require_no_negative_bit(object, name);
    return view_of_dlpack(object, name);
  }
  refuse(name, "is of type " + type_name(object) +
                   "; expected an array: NumPy's, a PyTorch tensor, or anything else with a buffer or DLPack");
}

ArrayView writable_view_of(py::handle object, const char* name) {
  ArrayView view = view_of(object, name);
  if (!view.writable) refuse(name, "is read-only, and it is to be written; give a copy (numpy.array(x))");
  return view;
}

void require_dtype(const ArrayView& view, DType dtype) {
  if (view.dtype == dtype) return;
  refuse(view.name, std::string("has elements of ") + name_of(view.dtype) + "; expected " + name_of(dtype));
}

void require_contiguous(const ArrayView& view) {
  if (view.is_contiguous()) return;
  refuse(view.name, view.shape_text() + " is not contiguous; give numpy.ascontiguousarray(x) or x.contiguous()");
}

}  // namespace evenkeel::python
