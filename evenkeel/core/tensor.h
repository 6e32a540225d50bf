// Shapes, element types and the one owning tensor of the program: dense, row-major, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/error.h"

namespace evenkeel {

enum class DType { kF32, kF64, kI64, kI32, kU8 };

size_t size_bytes(DType dtype);
const char* name_of(DType dtype);  // "F32", "F64", "I64", "I32", "U8": the names of safetensors

// Extents, outermost first. A scalar has no extents; an extent may be 0.
using Shape = std::vector<int64_t>;

// Product of the extents (1 for a scalar). Throws UsageError when an extent is negative or the product overflows int64.
int64_t element_count(const Shape& shape);
std::string to_string(const Shape& shape);  // "[64, 3, 3, 3]"

// Memory aligned to 64 bytes (a cache line and a vector), zeroed, freed by its owner. Throws IoError when there is none.
// huge: asks for transparent huge pages (a hint; worth it for arenas of many MiB).
struct AlignedFree {
  void operator()(std::byte* p) const noexcept;
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedFree>;
AlignedBytes allocate_aligned(size_t bytes, bool huge = false);
// The same without the zeroes: no page is touched.
AlignedBytes allocate_untouched(size_t bytes, bool huge = false);

// An owning, movable, explicitly copied tensor. Elements are zero at first.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, Shape shape)
      : dtype_(dtype), shape_(std::move(shape)), count_(element_count(shape_)), data_(allocate_aligned(bytes())) {}

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t count() const { return count_; }
  size_t bytes() const { return static_cast<size_t>(count_) * size_bytes(dtype_); }
  std::byte* raw() { return data_.get(); }
  const std::byte* raw() const { return data_.get(); }

  // Elements as T. Requires that T matches dtype (EK_ASSERT).
  template <class T>
  std::span<T> values() {
    EK_ASSERT(matches<T>());
    return {reinterpret_cast<T*>(data_.get()), static_cast<size_t>(count_)};
  }
  template <class T>
  std::span<const T> values() const {
    EK_ASSERT(matches<T>());
    return {reinterpret_cast<const T*>(data_.get()), static_cast<size_t>(count_)};
  }

  Tensor clone() const {
    Tensor copy(dtype_, shape_);
    if (bytes() > 0) std::memcpy(copy.raw(), raw(), bytes());
    return copy;
  }

 private:
  template <class T>
  bool matches() const {
    switch (dtype_) {
      case DType::kF32:
        return std::is_same_v<T, float>;
      case DType::kF64:
        return std::is_same_v<T, double>;
      case DType::kI64:
        return std::is_same_v<T, int64_t>;
      case DType::kI32:
        return std::is_same_v<T, int32_t>;
      case DType::kU8:
        return std::is_same_v<T, uint8_t>;
    }
    return false;
  }

  DType dtype_ = DType::kF32;
  Shape shape_{0};
  int64_t count_ = 0;
  AlignedBytes data_;
};

}  // namespace evenkeel
