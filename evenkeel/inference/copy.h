// Moves a box of elements between two strided arrays: what Transpose, Slice, Split, Concat, Expand, Pad and changes of layout are.
#pragma once

#include <cstddef>

#include "evenkeel/core/tensor.h"

namespace evenkeel::inference {

struct CopyBox {
  Shape extents;                   // elements per dimension
  Shape from_strides, to_strides;  // in elements; any sign, 0 repeats
  int64_t from_offset = 0, to_offset = 0;
};

// Drops extents of 1 and joins neighbours that lie dense in both arrays: fewer, longer runs.
CopyBox simplified(const CopyBox& box);
// element_bytes: 4 or 8. `box` simplified. Allocates nothing.
void copy_box(const CopyBox& box, size_t element_bytes, const std::byte* from, std::byte* to, int threads);

}  // namespace evenkeel::inference
