// Arrays of other people's, looked at without a copy: NumPy, memoryview and array.array by the buffer protocol, PyTorch's tensors and
// whatever else speaks DLPack by that. The GIL is held while a view is made and while it is destroyed, and need not be in between.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace evenkeel::python {

enum class DType { kF32, kBF16, kF16, kF64, kI8, kI16, kI32, kI64, kU8, kU16, kU32, kU64, kBool };

// "fp32", "bf16", ..., "int64", "bool"
const char* name_of(DType dtype);
size_t size_bytes(DType dtype);

// A look at an array. `data` stays where it is as long as the view or a copy of it lives.
struct ArrayView {
  std::string name;              // of the argument, for messages
  void* data = nullptr;          // of the first element, aligned to an element; may be null where count() is 0
  DType dtype = DType::kF32;     // in the byte order of this machine
  std::vector<int64_t> shape;    // extents, at least 0; empty: a single value
  std::vector<int64_t> strides;  // in elements, as many as there are extents; any sign, 0 for broadcast
  bool writable = false;
  std::shared_ptr<void> owner;  // gives the array back

  int64_t count() const;           // elements
  bool is_contiguous() const;      // in C's order; extents of 1 may have any stride
  std::string shape_text() const;  // "[2, 3]"
  template <class T>
  const T* as() const {  // the caller has looked at dtype
    return static_cast<const T*>(data);
  }
};

// Whether view_of() can be asked: the object has a buffer or speaks DLPack. Never throws; False for str and bytes.
bool is_array(pybind11::handle object);

// A look at `object`. Throws UsageError with one sentence that begins with `name`: for what is no array, lies on another device than
// the CPU, requires grad (a tensor that autograd watches), has PyTorch's negative bit, is masked (numpy.ma), or has elements that no DType names (complex, structured, big-endian).
ArrayView view_of(pybind11::handle object, const char* name);

// The same, and throws UsageError for an array that is not writable.
ArrayView writable_view_of(pybind11::handle object, const char* name);

// Throws UsageError unless the view has this type, and is contiguous.
void require_dtype(const ArrayView& view, DType dtype);
void require_contiguous(const ArrayView& view);

}  // namespace evenkeel::python
