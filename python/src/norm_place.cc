#include "norm_place.h"

#include <vector>

#include "evenkeel/core/error.h"

namespace evenkeel::python {
namespace {

std::string text_of(std::span<const int64_t> numbers) {
  std::string text = "[";
  for (const int64_t number : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(number);
  return text + "]";
}

}  // namespace

Place place_of(std::span<const int64_t> shape, std::span<const int64_t> strides, size_t channel_axis) {
  int64_t example = 1;
  for (size_t i = 1; i < shape.size(); ++i) example *= shape[i];
  Place place;
  if (shape[0] > 1) {
    if (strides[0] < example) return {};
    place.example_stride = strides[0];
  }
  // Innermost first, the channel at the end or at the start. An axis of extent 1 may have any stride: nobody steps along it.
  const auto is_packed = [&](bool channel_inside) {
    int64_t step = 1;
    const auto fits = [&](size_t axis) {
      if (shape[axis] > 1 && strides[axis] != step) return false;
      step *= shape[axis];
      return true;
    };
    if (channel_inside && !fits(channel_axis)) return false;
    for (size_t i = shape.size(); i-- > 1;) {
      if (i != channel_axis && !fits(i)) return false;
    }
    return channel_inside || fits(channel_axis);
  };
  place.first = is_packed(false);
  place.last = is_packed(true);
  return place;
}

Place require_place(const ArrayView& view, size_t channel_axis) {
  const Place place = place_of(view.shape, view.strides, channel_axis);
  if (place) return place;
  throw UsageError(view.name + " " + view.shape_text() + " has the strides " + text_of(view.strides) +
                   ", which are neither channels first nor channels last: an example must be contiguous; give "
                   "numpy.ascontiguousarray(x) or x.contiguous()");
}

NormDescriptor descriptor_of(std::span<const int64_t> shape, size_t channel_axis) {
  NormDescriptor d;
  d.n = shape[0];
  d.c = shape[channel_axis];
  // The last extents of space are h and w, all before them are d.
  int64_t* extents[] = {&d.w, &d.h, &d.d};
  size_t found = 0;
  for (size_t i = shape.size(); i-- > 1;) {
    if (i == channel_axis) continue;
    *extents[found < 2 ? found : 2] *= shape[i];
    ++found;
  }
  return d;
}

NormType norm_type(const ArrayView& view) {
  switch (view.dtype) {
    case DType::kF32:
      return NormType::kF32;
    case DType::kBF16:
      return NormType::kBF16;
    case DType::kF16:
      return NormType::kF16;
    case DType::kF64:
      return NormType::kF64;
    default:
      break;
  }
  throw UsageError(view.name + " has elements of " + name_of(view.dtype) +
                   "; expected fp32, fp64, fp16 or bf16: convert it (x.astype(\"float32\") or x.float())");
}

}  // namespace evenkeel::python
