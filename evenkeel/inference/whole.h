// Whole numbers of every type are kept as int64 here; results wrap around as those of their own type do.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::inference {

// Makes a number one of an element type: the low bits, of signed types with the sign that they have there; 0 or 1 for truth values.
class Narrowing {
 public:
  explicit Narrowing(onnx::ElementType type)
      : unused_bits_(64 - 8 * static_cast<int>(onnx::size_bytes(type))),
        is_signed_(type == onnx::ElementType::kInt8 || type == onnx::ElementType::kInt16 ||
                   type == onnx::ElementType::kInt32 || type == onnx::ElementType::kInt64),
        is_truth_(type == onnx::ElementType::kBool) {}
  int64_t operator()(uint64_t v) const {
    if (is_truth_) return v != 0 ? 1 : 0;
    const uint64_t high = v << unused_bits_;
    return is_signed_ ? static_cast<int64_t>(high) >> unused_bits_ : static_cast<int64_t>(high >> unused_bits_);
  }
  int64_t operator()(int64_t v) const { return (*this)(static_cast<uint64_t>(v)); }

 private:
  int unused_bits_;
  bool is_signed_, is_truth_;
};

// Towards zero; NaN is 0, and what is beyond int64 its least or greatest number.
inline int64_t whole_of(double v) {
  if (std::isnan(v)) return 0;
  if (v >= 0x1p63) return std::numeric_limits<int64_t>::max();
  if (v < -0x1p63) return std::numeric_limits<int64_t>::min();
  return static_cast<int64_t>(v);
}

}  // namespace evenkeel::inference
