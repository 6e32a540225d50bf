// How an array of the shape [N, C, *space] lies in memory, in the terms of evenkeel/norm.h.
#pragma once

#include <span>
#include <string>

#include "arrays.h"
#include "evenkeel/norm.h"

namespace evenkeel::python {

struct Place {
  bool first = false, last = false;  // which layouts describe it: both where there is one channel, or no space
  int64_t example_stride = 0;        // 0: the examples follow each other

  explicit operator bool() const { return first || last; }
};

// Neither layout where an example is not contiguous, or examples overlap (broadcast, negative strides).
// channel_axis: 1, or the last one. shape: at least two extents, all at least 1.
Place place_of(std::span<const int64_t> shape, std::span<const int64_t> strides, size_t channel_axis);

// The same for a view, with the errors that a user sees: throws UsageError.
Place require_place(const ArrayView& view, size_t channel_axis);

// n, c, d, h, w of an array of at least two axes; the layout and the type are not set.
NormDescriptor descriptor_of(std::span<const int64_t> shape, size_t channel_axis);

// Type of the kernels for elements of a view; throws UsageError for what is no float.
NormType norm_type(const ArrayView& view);

}  // namespace evenkeel::python
